// The explorer: how networks recover, and what each method keeps in a layer.
// It draws the numbers of topoprune/report/figures/interactive.py, without a library and without the network.
(function () {
  "use strict";
  const { networks, layers } = JSON.parse(document.getElementById("explorer-data").textContent);
  const at = (name) => document.getElementById("explorer-" + name);
  const form = at("form"), field = form.elements;
  const TEXT = "currentColor", SMALL = 12;

  // Elements

  function html(name, attributes, ...content) {
    const element = document.createElement(name);
    Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
    element.append(...content);
    return element;
  }

  function svg(name, attributes, ...content) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    Object.entries(attributes).forEach(([key, value]) => element.setAttribute(key, value));
    element.append(...content);
    return element;
  }

  function picture(width, height, says) {
    return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": says });
  }

  const write = (plot, x, y, text, more = {}) =>
    plot.append(svg("text", { x, y, fill: TEXT, "font-size": SMALL, ...more }, text));

  const rule = (x1, y1, x2, y2, more = {}) => svg("line", { x1, y1, x2, y2, stroke: TEXT, ...more });

  // Fill a menu, and choose the first of the wanted values that it has.
  function options(select, values, ...wanted) {
    select.replaceChildren(...values.map(([value, text]) => html("option", { value }, text)));
    const chosen = wanted.find((one) => values.some(([value]) => value === one));
    if (chosen !== undefined) select.value = chosen;
  }

  // Markers, by matplotlib's names, of radius 1

  function polygon(corners, turn, inner = 1) {
    const steps = inner < 1 ? 2 * corners : corners;
    const points = Array.from({ length: steps }, (_, i) => {
      const angle = (turn + 360 * i / steps) * Math.PI / 180, radius = i % 2 && inner < 1 ? inner : 1;
      return `${(radius * Math.cos(angle)).toFixed(3)} ${(radius * Math.sin(angle)).toFixed(3)}`;
    });
    return `M${points.join("L")}Z`;
  }

  const SHAPES = {
    o: "M-1 0a1 1 0 1 0 2 0a1 1 0 1 0 -2 0Z", s: polygon(4, 45), D: polygon(4, 0), "^": polygon(3, -90),
    v: polygon(3, 90), "<": polygon(3, 180), ">": polygon(3, 0), P: polygon(4, 0, 0.4), X: polygon(4, 45, 0.4),
    p: polygon(5, -90), "*": polygon(5, -90, 0.4), h: polygon(6, -90), H: polygon(6, 0),
  };

  function mark(shape, x, y, radius, look) {
    const transform = `translate(${x.toFixed(1)} ${y.toFixed(1)}) scale(${radius})`;
    return svg("path", { d: SHAPES[shape], transform, "vector-effect": "non-scaling-stroke", ...look });
  }

  // Axes

  function ticks(low, high, about) {
    const rough = (high - low) / about || 1, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const first = Math.ceil(low / step - 1e-9), count = Math.floor(high / step + 1e-9) - first + 1;
    const values = Array.from({ length: Math.max(0, count) }, (_, i) => (first + i) * step);
    return values.map((value) => [value, value.toFixed(digits)]);
  }

  function extent(values, room = 0.05) {
    const low = Math.min(...values), high = Math.max(...values), margin = (high - low || Math.abs(high) || 1) * room;
    return [low - margin, high + margin];
  }

  // Draw axes in a box and return the two scales.
  function axes(plot, box, xs, ys, labels, xticks) {
    const { left, right, top, bottom } = box;
    const x = (value) => left + (right - left) * (value - xs[0]) / (xs[1] - xs[0]);
    const y = (value) => bottom - (bottom - top) * (value - ys[0]) / (ys[1] - ys[0]);
    ticks(...ys, (bottom - top) / 50).forEach(([value, text]) => {
      plot.append(rule(left, y(value), right, y(value), { "stroke-opacity": 0.15 }));
      write(plot, left - 6, y(value) + 4, text, { "text-anchor": "end" });
    });
    (xticks || ticks(...xs, (right - left) / 60)).forEach(([value, text]) =>
      write(plot, x(value), bottom + 16, text, { "text-anchor": "middle" }));
    write(plot, (left + right) / 2, bottom + 32, labels[0], { "text-anchor": "middle" });
    write(plot, left, top - 12, labels[1]);
    return [x, y];
  }

  // How do networks recover?

  const group = () => networks[field.networks.value];
  const cell = () => group().ratios[field.ratio.value];
  const chosen = () => cell().methods.filter((method) => checked.has(method.name));
  const percent = (share) => `${Math.round(100 * share)} %`;
  const ends = (values) => values[values.length - 1];
  const known = (method) => method.low.every((value) => value !== null);
  const interval = (method) => {
    if (method.networks < 2 || ends(method.low) === null) return "none";
    return `${ends(method.low).toFixed(2)} to ${ends(method.high).toFixed(2)}`;
  };
  const checked = new Set(networks.flatMap((one) => Object.values(one.ratios)).flatMap((one) => one.methods)
    .filter((method) => method.usual).map((method) => method.name));

  function swatch(method) {
    const look = { fill: method.colour, stroke: TEXT, "stroke-width": 0.7 };
    return svg("svg", { viewBox: "0 0 28 14", class: "explorer-swatch", "aria-hidden": "true" },
      rule(0, 7, 28, 7, { stroke: method.colour, "stroke-width": 2.5 }),
      mark(method.marker, 14, 7, 5, look));
  }

  function offerMethods() {
    at("methods").querySelectorAll("label").forEach((label) => label.remove());
    cell().methods.forEach((method) => {
      const box = html("input", { type: "checkbox", name: "method-shown", value: method.name });
      box.checked = checked.has(method.name);
      at("methods").append(html("label", {}, box, swatch(method), method.name));
    });
  }

  function path(points, look) {
    const steps = points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`);
    return svg("path", { d: `M${steps.join("L")}`, fill: "none", ...look });
  }

  // Write each method's name at the end of its line, pushed down where names would overlap.
  function labelEnds(plot, methods, x, y) {
    let free = -Infinity;
    [...methods].sort((a, b) => ends(b.mean) - ends(a.mean)).forEach((method) => {
      const end = y(ends(method.mean)), place = Math.max(end, free);
      free = place + 15;
      plot.append(rule(x + 6, end, x + 16, place, { stroke: method.colour, "stroke-width": 1.5 }));
      write(plot, x + 20, place + 4, method.name);
    });
  }

  function drawCurves() {
    const methods = chosen(), width = Math.max(280, at("curves").clientWidth), wide = width >= 560;
    const height = Math.round(Math.min(420, Math.max(300, 0.55 * width))), from = field.after.checked ? 1 : 0;
    const says = `Mean test accuracy by epoch. ${condition()}: ${methods.map(accuracy).join(", ")}`;
    const plot = picture(width, height, says);
    at("curves").replaceChildren(plot);
    if (!methods.length) return write(plot, 20, 40, "Choose a method.");
    const lines = methods.flatMap((method) => [method.mean, ...(known(method) ? [method.low, method.high] : []),
      ...(field.runs.checked ? Object.values(method.runs) : [])]);
    const ys = extent([cell().dense, ...lines.flatMap((values) => values.slice(from))]);
    const names = wide ? 28 + 7.2 * Math.max(...methods.map((method) => method.name.length)) : 14;
    const box = { left: 42, right: width - names, top: 30, bottom: height - 40 }, last = group().epochs;
    const whole = ticks(from, last, width / 60).map(([value]) => value).filter(Number.isInteger);
    const epochs = whole.map((value) => [value, value]);
    const [x, y] = axes(plot, box, [from, last], ys, ["epoch of fine-tuning", "test accuracy (%)"], epochs);
    const dense = y(cell().dense), onPlot = (values) => values.map((value, i) => [x(i), y(value)]).slice(from);
    plot.append(rule(box.left, dense, box.right, dense, { "stroke-dasharray": "2 4" }));
    write(plot, box.left + 4, dense + 14, "dense networks");
    methods.filter(known).forEach((method) => plot.append(path(
      [...onPlot(method.high), ...onPlot(method.low).reverse()], { fill: method.colour, "fill-opacity": 0.18 })));
    if (field.runs.checked) methods.forEach((method) => Object.values(method.runs).forEach((run) =>
      plot.append(path(onPlot(run), { stroke: method.colour, "stroke-width": 0.9, "stroke-opacity": 0.8 }))));
    methods.forEach((method) => {
      const look = { fill: method.colour, stroke: TEXT, "stroke-width": 0.7 };
      plot.append(path(onPlot(method.mean), { stroke: method.colour, "stroke-width": 2.5 }));
      onPlot(method.mean).forEach(([across, up]) => plot.append(mark(method.marker, across, up, 5, look)));
    });
    if (wide) labelEnds(plot, methods, box.right, y);
  }

  const accuracy = (method) => `${method.name} ${ends(method.mean).toFixed(2)} %`;
  const condition = () => `After ${group().epochs} epochs, with ${percent(field.ratio.value)} of the filters removed`;

  function extremes() {
    const [best, ...others] = [...chosen()].sort((a, b) => ends(b.mean) - ends(a.mean));
    if (!best) return "No method is chosen.";
    const worst = others.length ? ` The lowest is ${accuracy(others[others.length - 1])}.` : "";
    const dense = `The dense networks have ${cell().dense.toFixed(2)} %.`;
    return `${condition()}, the highest mean is ${accuracy(best)}.${worst} ${dense}`;
  }

  function tabulate() {
    const heads = ["Method", "Mean (%)", "Interval (%)", "Networks", "FLOPs left (%)", "Recovered"];
    const rows = chosen().map((method) => {
      const values = [ends(method.mean).toFixed(2), interval(method), method.networks, method.flops.toFixed(1),
        `${method.recovered} of ${method.networks}`];
      return html("tr", {}, html("th", { scope: "row" }, method.name), ...values.map((value) => html("td", {}, value)));
    });
    at("recovery-table").replaceChildren(html("caption", {}, `Test accuracy. ${condition()}.`),
      html("thead", {}, html("tr", {}, ...heads.map((head) => html("th", { scope: "col" }, head)))),
      html("tbody", {}, ...rows));
  }

  function showRecovery() {
    if (!networks.length) { at("recovery-said").textContent = "No fine-tuned network is on record."; return; }
    drawCurves();
    tabulate();
    const ranges = chosen().filter((method) => !method.t).length;
    at("band").textContent = "Lines are means over dense networks; bands and intervals are 95 % t-intervals"
      + (ranges ? ", or the least and the largest value where there are fewer than three networks." : ".");
    at("recovery-said").textContent = extremes();
  }

  // What does each method keep in a layer?

  const layer = () => layers.find((one) => one.id === field.layer.value);
  const choice = () => layer().methods.find((one) => one.id === field.method.value);
  const WHOLE = { fill: "none", stroke: TEXT, "stroke-opacity": 0.75 };
  const keptLook = () => ({ fill: choice().colour, stroke: TEXT, "stroke-width": 0.7 });

  function key(plot, x, hollow, filled) {
    plot.append(mark("D", x, 10, 5, WHOLE), mark("o", x + 90, 10, 4.5, keptLook()));
    write(plot, x + 10, 14, hollow);
    write(plot, x + 100, 14, filled);
  }

  function planeScale() {
    const [xs, ys] = [0, 1].map((axis) => layer().plane.map((point) => point[axis]));
    const ranges = [extent(xs, 0), extent(ys, 0)], middle = ranges.map(([low, high]) => (low + high) / 2);
    const [wide, high] = ranges.map(([low, high]) => high - low || 1), scale = 0.92 * Math.min(340 / wide, 270 / high);
    return ([x, y]) => [170 + scale * (x - middle[0]), 165 - scale * (y - middle[1])];
  }

  function drawPlane() {
    const { plane } = layer(), { name, kept } = choice(), place = planeScale(), picked = Number(field.filter.value);
    const plot = picture(340, 310, `${plane.length} filters in the plane; ${name} keeps ${kept.length}.`);
    const radius = plane.length > 200 ? 3 : 5, stay = new Set(kept);
    key(plot, 60, "removed", "kept");
    plane.forEach((point, i) => plot.append(stay.has(i)
      ? mark("o", ...place(point), radius, keptLook()) : mark("D", ...place(point), radius, WHOLE)));
    plot.append(mark("o", ...place(plane[picked]), radius + 5, { fill: "none", stroke: TEXT, "stroke-width": 2 }));
    plot.addEventListener("pointermove", pickNearest);
    plot.addEventListener("pointerdown", pickNearest);
    at("plane").replaceChildren(plot);
    const norm = layer().norms.length ? `, norm ${layer().norms[picked].toPrecision(3)}` : "";
    at("filter-said").textContent = `Filter ${picked}: ${stay.has(picked) ? "kept" : "removed"}${norm}`;
  }

  function pickNearest(event) {
    const frame = event.currentTarget.getBoundingClientRect(), unit = 340 / frame.width, place = planeScale();
    const [x, y] = [(event.clientX - frame.left) * unit, (event.clientY - frame.top) * unit];
    const far = layer().plane.map((point) => Math.hypot(place(point)[0] - x, place(point)[1] - y));
    const nearest = far.indexOf(Math.min(...far));
    if (far[nearest] > 25 || nearest === Number(field.filter.value)) return;
    field.filter.value = nearest;
    drawPlane();
  }

  function drawMerges() {
    const whole = layer().full[0], kept = choice().diagrams[0];
    const plot = picture(340, 300, `Merging clusters: ${whole.length} in the layer, ${kept.length} among the kept.`);
    key(plot, 60, "whole layer", "kept");
    const ys = extent([...whole, ...kept].map((pair) => pair[1]).concat(whole.length ? [] : [0, 1]));
    const box = { left: 48, right: 330, top: 42, bottom: 264 };
    const labels = ["all births are 0", "distance of the merging"], columns = [[0.3, "whole layer"], [0.7, "kept"]];
    const [x, y] = axes(plot, box, [0, 1], ys, labels, columns);
    whole.forEach((pair) => plot.append(mark("D", x(0.3), y(pair[1]), 5, WHOLE)));
    kept.forEach((pair) => plot.append(mark("o", x(0.7), y(pair[1]), 4.5, keptLook())));
    at("h0").replaceChildren(plot);
  }

  function drawLoops() {
    const whole = layer().full[1], kept = choice().diagrams[1], all = [...whole, ...kept];
    const says = `Loops: ${whole.length} in the whole layer, ${kept.length} among the kept filters.`;
    const plot = picture(340, all.length ? 300 : 40, says);
    at("h1").replaceChildren(plot);
    if (!all.length) return write(plot, 48, 20, "No loop in the layer.");
    key(plot, 60, "whole layer", "kept");
    const range = extent(all.flat()), box = { left: 48, right: 330, top: 42, bottom: 264 };
    const [x, y] = axes(plot, box, range, range, ["birth", "death"]);
    plot.append(rule(x(range[0]), y(range[0]), x(range[1]), y(range[1]), { "stroke-opacity": 0.5 }));
    whole.forEach((pair) => plot.append(mark("D", x(pair[0]), y(pair[1]), 4, WHOLE)));
    kept.forEach((pair) => plot.append(mark("o", x(pair[0]), y(pair[1]), 3.5, keptLook())));
  }

  // Draw bars of one dimension below each other, the longest first, on a share of the height that the most would fill.
  function stack(plot, bars, left, top, range, most, colour) {
    const x = (value) => left + 156 * (value - range[0]) / (range[1] - range[0]), step = 100 / most;
    const look = { stroke: colour, "stroke-width": Math.min(4, 0.75 * step) };
    [...bars].sort((a, b) => (b[1] - b[0]) - (a[1] - a[0])).forEach(([birth, death], i) =>
      plot.append(rule(x(birth), top + step * (i + 0.5), x(death), top + step * (i + 0.5), look)));
    plot.append(rule(left, top + 104, left + 156, top + 104));
    write(plot, left, top + 118, range[0].toPrecision(3));
    write(plot, left + 156, top + 118, range[1].toPrecision(3), { "text-anchor": "end" });
  }

  function drawBars() {
    const parts = [["whole layer", layer().full, TEXT], ["kept", choice().diagrams, choice().colour]];
    const counts = parts.map(([name, bars]) => `${name}: ${bars[0].length} of clusters, ${bars[1].length} of loops`);
    const plot = picture(340, 310, `Bars. ${counts.join("; ")}.`);
    [0, 1].forEach((dimension) => {
      const bars = parts.map((part) => part[1][dimension]), most = Math.max(...bars.map((some) => some.length));
      const range = most ? extent(bars.flat(2), 0) : [0, 1], top = 24 + 150 * dimension;
      parts.forEach(([name, , colour], column) => {
        const left = 6 + 172 * column;
        write(plot, left, top - 8, `H${dimension}, ${name}: ${bars[column].length}`);
        if (most) stack(plot, bars[column], left, top, range, most, colour);
      });
    });
    at("bars").replaceChildren(plot);
  }

  function showLayer() {
    if (!layers.length) { at("layer-said").textContent = "No layer is on record."; return; }
    [drawPlane, drawBars, drawMerges, drawLoops].forEach((draw) => draw());
    const { name, kept, distances, norm } = choice(), known = [0, 1].filter((q) => distances[q] !== null);
    const shares = known.map((q) => `${percent(distances[q])} in dimension ${q}`).join(" and ");
    const filters = `${layer().plane.length} filters of ${layer().name} in ${layer().network}`;
    const said = [`Of the ${filters}, ${name} keeps ${kept.length}.`];
    if (shares) said.push(`Their diagram's distance from the layer's, as a share of its persistence, is ${shares}.`);
    if (norm !== null) said.push(`They hold ${norm.toFixed(0)} % of the filters' summed norms.`);
    at("layer-said").textContent = said.join(" ");
  }

  // The choice: in the controls, and in the address so that it can be linked

  function offer() {
    const wanted = { ratio: field.ratio.value, method: field.method.value };
    if (networks.length) {
      options(field.ratio, Object.keys(group().ratios).sort().map((ratio) => [ratio, percent(ratio)]), wanted.ratio);
      offerMethods();
    }
    if (layers.length) {
      options(field.method, layer().methods.map((method) => [method.id, method.name]), wanted.method, "topological");
      field.filter.max = layer().plane.length - 1;
    }
  }

  function show() {
    at("recovery").hidden = field.question.value !== "recovery";
    at("layer-view").hidden = field.question.value !== "layer";
    if (field.question.value === "recovery") showRecovery(); else showLayer();
  }

  function readAddress() {
    const asked = new URLSearchParams(location.hash.slice(1));
    if (!["recovery", "layer"].includes(asked.get("question"))) return;
    field.question.value = asked.get("question");
    for (const names of [["networks", "layer"], ["ratio", "method"]]) {
      names.filter((name) => [...field[name].options].some((option) => option.value === asked.get(name)))
        .forEach((name) => { field[name].value = asked.get(name); });
      offer();
    }
    if (asked.has("show")) { checked.clear(); asked.getAll("show").forEach((name) => checked.add(name)); offer(); }
    ["runs", "after"].forEach((name) => { field[name].checked = asked.has(name); });
  }

  function writeAddress() {
    const question = field.question.value, asked = new URLSearchParams({ question });
    const names = question === "layer" ? ["layer", "method"] : ["networks", "ratio"];
    names.forEach((name) => asked.set(name, field[name].value));
    if (question === "recovery" && networks.length) {
      ["runs", "after"].filter((name) => field[name].checked).forEach((name) => asked.set(name, "1"));
      chosen().forEach((method) => asked.append("show", method.name));
    }
    history.replaceState(null, "", "#" + asked);
  }

  function change(event) {
    const { name, value, checked: on } = event.target;
    if (name === "method-shown") checked[on ? "add" : "delete"](value);
    if (["networks", "ratio", "layer"].includes(name)) offer();
    show();
    writeAddress();
  }

  options(field.networks, networks.map((one, i) => [i, one.name]));
  [...new Set(layers.map((one) => one.network))].forEach((network) => {
    const own = layers.filter((one) => one.network === network);
    const offered = own.map((one) => html("option", { value: one.id }, `${one.name} (${one.plane.length} filters)`));
    field.layer.append(html("optgroup", { label: network }, ...offered));
  });
  form.hidden = false;
  offer();
  readAddress();
  show();
  form.addEventListener("change", change);
  form.addEventListener("submit", (event) => event.preventDefault());
  at("filter").addEventListener("input", drawPlane);
  window.addEventListener("hashchange", () => { readAddress(); show(); });
  let drawn = at("curves").clientWidth;
  new ResizeObserver(() => {
    const width = at("curves").clientWidth;
    if (width && width !== drawn && networks.length) { drawn = width; drawCurves(); }
  }).observe(at("curves"));
})();
