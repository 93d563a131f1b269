// The explorer: recovery curves of the records, by method, ratio and seed. No library, no network.
(function () {
  const root = document.getElementById("explorer");
  const runs = JSON.parse(document.getElementById("explorer-data").textContent);
  const unique = (name) => [...new Set(runs.map((run) => run[name]))];
  const chosen = { ratio: unique("ratio")[0], seed: "all", methods: new Set(unique("method")) };
  const width = 720, height = 380, left = 56, right = 12, top = 12, bottom = 44;

  function element(name, attributes, text) {
    const svg = ["svg", "path", "circle", "line", "text", "g", "title"].includes(name);
    const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    Object.entries(attributes || {}).forEach(([key, value]) => made.setAttribute(key, value));
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function menu(label, values, pick) {
    const box = element("label", { style: "margin-right: 1.5em" }, label + " ");
    const select = element("select");
    values.forEach((value) => select.append(element("option", { value: value }, value)));
    select.addEventListener("change", () => { pick(select.value); draw(); });
    box.append(select);
    return box;
  }

  function draw() {
    const shown = runs.filter((run) => run.ratio === chosen.ratio && chosen.methods.has(run.method)
      && (chosen.seed === "all" || String(run.seed) === chosen.seed));
    plot.replaceChildren();
    table.replaceChildren();
    if (!shown.length) { plot.append(element("text", { x: left, y: 40, fill: "currentColor" }, "no such run")); return; }
    const values = shown.flatMap((run) => run.test.concat(run.dense));
    const low = Math.floor(Math.min(...values)), high = Math.ceil(Math.max(...values) + 0.5);
    const last = Math.max(...shown.map((run) => run.test.length - 1), 1);
    const x = (epoch) => left + (width - left - right) * epoch / last;
    const y = (value) => top + (height - top - bottom) * (high - value) / (high - low);
    const step = Math.max(1, Math.round((high - low) / 6));
    for (let value = low; value <= high; value += step) {
      plot.append(element("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), stroke: "grey", "stroke-opacity": 0.25 }));
      plot.append(element("text", { x: left - 8, y: y(value) + 4, "text-anchor": "end", fill: "currentColor", "font-size": 12 }, value));
    }
    for (let epoch = 0; epoch <= last; epoch += 1) {
      plot.append(element("text", { x: x(epoch), y: height - bottom + 18, "text-anchor": "middle", fill: "currentColor", "font-size": 12 }, epoch));
    }
    plot.append(element("text", { x: (left + width) / 2, y: height - 6, "text-anchor": "middle", fill: "currentColor", "font-size": 13 }, "epoch of fine-tuning"));
    plot.append(element("text", { x: 14, y: height / 2, transform: "rotate(-90 14 " + height / 2 + ")", "text-anchor": "middle", fill: "currentColor", "font-size": 13 }, "test accuracy (%)"));
    const dense = shown.reduce((sum, run) => sum + run.dense, 0) / shown.length;
    plot.append(element("line", { x1: left, x2: width - right, y1: y(dense), y2: y(dense), stroke: "currentColor", "stroke-dasharray": "2 4" }));
    const head = element("tr");
    ["method", "seed", "before (%)", "after (%)", "FLOPs left (%)", "recovered"].forEach((name) => head.append(element("th", {}, name)));
    table.append(head);
    shown.forEach((run) => {
      const line = run.test.map((value, epoch) => (epoch ? "L" : "M") + x(epoch) + " " + y(value)).join("");
      plot.append(element("path", { d: line, fill: "none", stroke: run.colour, "stroke-width": 2 }));
      run.test.forEach((value, epoch) => {
        const dot = element("circle", { cx: x(epoch), cy: y(value), r: 3.5, fill: run.colour });
        dot.append(element("title", {}, run.method + ", seed " + run.seed + ", epoch " + epoch + ": " + value.toFixed(2) + " %"));
        plot.append(dot);
      });
      const row = element("tr");
      [run.method, run.seed, run.test[0].toFixed(2), run.test[run.test.length - 1].toFixed(2), run.flops.toFixed(1), run.recovered ? "yes" : "no"]
        .forEach((value) => row.append(element("td", {}, value)));
      table.append(row);
    });
  }

  const controls = element("div", { style: "margin-bottom: 0.6em" });
  controls.append(menu("Ratio", unique("ratio"), (value) => { chosen.ratio = value; }));
  controls.append(menu("Seed", ["all", ...unique("seed")], (value) => { chosen.seed = value; }));
  const boxes = element("div", { style: "margin-bottom: 0.6em" });
  unique("method").forEach((method) => {
    const label = element("label", { style: "margin-right: 1em; white-space: nowrap" });
    const box = element("input", { type: "checkbox" });
    box.checked = true;
    box.addEventListener("change", () => { chosen.methods[box.checked ? "add" : "delete"](method); draw(); });
    const colour = runs.find((run) => run.method === method).colour;
    label.append(box, element("span", { style: "color:" + colour }, " \u25cf "), method);
    boxes.append(label);
  });
  const plot = element("svg", { viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": "Recovery curves of the chosen runs", style: "max-width: 100%" });
  const table = element("table", { class: "table" });
  root.append(controls, boxes, plot, table);
  draw();
})();
