"""Vietoris-Rips persistence of subsets of a metric space, and distances of diagrams, compiled for the CPU.

A layer's distances are sorted once. A subset is read through its indices, so a population costs no copies. The kernels
release the interpreter's lock: `in_threads` runs them on all cores.
"""

import inspect
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float32, Int32
from numba import njit

SMALL = 1e-3  # a distance below this share of the longest bar is computed again without that bar's rounding errors


def sorted_edges(
    delta: Float32[np.ndarray, "n n"],
) -> tuple[Int32[np.ndarray, " m"], Int32[np.ndarray, " m"], Float32[np.ndarray, " m"]]:
    """Ends and lengths of all m = n (n - 1) / 2 edges, shortest first; ties in the order of indices."""
    first, second = np.triu_indices(len(delta), 1)
    length = delta[first, second]
    order = np.argsort(length, kind="stable")
    return first[order].astype(np.int32), second[order].astype(np.int32), length[order]


def in_threads(work: Callable[[slice], None], size: int) -> None:
    """Call `work` on slices that cover range(size), on as many threads as `cores` allows."""
    threads = cores()
    step = max(1, size // (4 * threads))  # four parts a thread even out unequal individuals
    parts = [slice(start, min(start + step, size)) for start in range(0, size, step)]
    if threads == 1 or len(parts) == 1:
        for part in parts:
            work(part)
        return
    with ThreadPoolExecutor(threads) as pool:  # a fresh pool costs 0.1 ms and survives a fork
        list(pool.map(work, parts))


def cores() -> int:
    """Cores of this process, or the first whole number above 0 in OMP_NUM_THREADS if that is less."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = (text.strip() for text in os.environ.get("OMP_NUM_THREADS", "").split(","))
    return min(available, next((int(text) for text in limits if text.isdecimal() and int(text) > 0), available))


def kernel(function):
    """Compile a function of NumPy arrays. `unwrap` takes off the type checks that the tests put on."""
    return njit(nogil=True, cache=True, fastmath={"nnan", "nsz"})(inspect.unwrap(function))  # minima are vectorised


@kernel
def tree_bars(delta, members):
    """Bars of the subset `members` in dimension 0, sorted: the edges of its minimum spanning tree (Prim)."""
    rest = members[1:].copy()
    near = np.full(len(rest), np.inf, delta.dtype)
    lengths = np.empty(len(rest), delta.dtype)
    row = delta[members[0]]
    for size in range(len(rest), 0, -1):
        best = 0
        for j in range(size):
            near[j] = min(near[j], row[rest[j]])
        for j in range(1, size):
            if near[j] < near[best]:
                best = j
        lengths[size - 1] = near[best]
        row = delta[rest[best]]
        rest[best], near[best] = rest[size - 1], near[size - 1]
    bars = np.zeros((len(lengths), 2))
    bars[:, 1] = np.sort(lengths)
    return bars


@kernel
def rips_bars(first, second, length, members, n):
    """Bars (birth, death) of the subset `members` in dimensions 0 and 1, sorted by death.

    Persistent cohomology over Z/2 (de Silva, Morozov, Vejdemo-Johansson 2011; annotations of Dey, Fan, Wang 2014), one
    edge uv at a time. Its new triangles are uvw for w in the lune, the common neighbours of u and v so far. An empty
    lune means that the edge joins two components or starts a class. Otherwise a live cocycle alpha extends over the
    triangles if and only if alpha(uw) + alpha(vw) is the same for all w of the lune, and that value is then alpha(uv).
    Of the classes that fail, the youngest dies and is added to the others.

    Sets of vertices are rows of bits: near[u] are the neighbours of u, alpha[i, u] those w with alpha_i(uw) = 1.
    Cocycles are sparse: touch[u] are the classes i with a non-empty row alpha[i, u], and an edge looks at no others;
    rows[i] are those u.
    """
    capacity = len(members) // 2 + 64  # live classes to have room for; the rest starts again
    while True:
        enough, trees, loops = _sweep(first, second, length, members, n, capacity)
        if enough:
            return trees, loops
        capacity *= 2


@kernel
def _sweep(first, second, length, members, n, capacity):
    """Whether `capacity` live classes were enough; and if so, the bars."""
    k = len(members)
    words = (k + 63) >> 6
    local = np.full(n, -1, np.int64)
    local[members] = np.arange(k)
    near = np.zeros((k, words), np.uint64)
    degree = np.zeros(k, np.int64)
    parent = np.arange(k)
    trees, joined = np.zeros((k - 1, 2)), 0
    loops, dead = np.empty((16 * capacity, 2)), 0
    live = np.int64(0)  # a literal 0 has a type of its own, for which `_kill` would be compiled once more
    slots = np.arange(capacity)  # the first `live` hold the live classes, the others are free
    born = np.empty(capacity, np.int64)  # the edge that started the class
    alpha = np.zeros((capacity, k, words), np.uint64)
    rows = np.zeros((capacity, words), np.uint64)
    touch = np.zeros((k, (capacity + 63) >> 6), np.uint64)
    ones, broken = np.empty(capacity, np.int64), np.empty(capacity, np.int64)

    for e in range(len(length)):
        u, v = local[first[e]], local[second[e]]
        if u < 0 or v < 0:
            continue
        word = 0
        while word < words and near[u, word] & near[v, word] == 0:
            word += 1
        if word == words:
            root, other = _root(parent, u), _root(parent, v)
            if root != other:
                parent[root] = other
                trees[joined, 1] = length[e]
                joined += 1
            elif live == capacity:
                return False, trees, loops
            else:
                born[slots[live]] = e
                _set(alpha, rows, touch, u, v, slots[live])
                live += 1
        elif live:
            set_to_one, failing = _extend(alpha, touch, near, u, v, ones, broken)
            if failing:
                before = live
                live = _kill(alpha, rows, touch, born, slots, live, near[u] & near[v], u, v, broken[:failing])
                for c in range(live, before):
                    birth = length[born[slots[c]]]
                    if birth < length[e]:
                        if dead == len(loops):
                            return False, trees, loops
                        loops[dead, 0], loops[dead, 1] = birth, length[e]
                        dead += 1
                set_to_one, failing = _extend(alpha, touch, near, u, v, ones, broken)
            for c in range(set_to_one):
                _set(alpha, rows, touch, u, v, ones[c])
        _flip_bit(near, u, v)
        _flip_bit(near, v, u)
        degree[u] += 1
        degree[v] += 1
        if degree[u] == k - 1 or degree[v] == k - 1:
            break  # a cone: nothing lives, nothing is born any more (the enclosing radius)
    return True, trees, loops[:dead].copy()


@kernel
def _extend(alpha, touch, near, u, v, ones, broken):
    """Collect the classes that are 1 on uv in `ones`, those that do not extend in `broken`, and count both."""
    set_to_one, failing = 0, 0
    for block in range(touch.shape[1]):
        bits = touch[u, block] | touch[v, block]
        while bits:
            i = 64 * block + _lowest(bits)
            bits &= bits - np.uint64(1)
            all_zero, all_one = True, True
            for word in range(near.shape[1]):
                lune = near[u, word] & near[v, word]
                x = (alpha[i, u, word] ^ alpha[i, v, word]) & lune
                all_zero &= x == 0
                all_one &= x == lune
            if all_one:
                ones[set_to_one] = i
                set_to_one += 1
            elif not all_zero:
                broken[failing] = i
                failing += 1
    return set_to_one, failing


@kernel
def _kill(alpha, rows, touch, born, slots, live, lune, u, v, broken):
    """Let classes die until all extend over the lune. Return how many live, first in `slots`; sort `broken` by age."""
    for c in range(1, len(broken)):
        i, at = broken[c], c
        while at and born[broken[at - 1]] > born[i]:
            broken[at] = broken[at - 1]
            at -= 1
        broken[at] = i
    witness = 0
    while lune[witness] == 0:
        witness += 1
    low = lune[witness] & (~lune[witness] + np.uint64(1))
    defect = np.empty((len(broken), len(lune)), np.uint64)  # the w whose triangle disagrees with the witness's
    for c in range(len(broken)):
        x = alpha[broken[c], u] ^ alpha[broken[c], v]
        defect[c] = (~x if x[witness] & low else x) & lune
    for c in range(len(broken) - 1, -1, -1):  # youngest first
        word = 0
        while word < len(lune) and defect[c, word] == 0:
            word += 1
        if word == len(lune):
            continue  # an addition has mended it
        low = defect[c, word] & (~defect[c, word] + np.uint64(1))
        for older in range(c):
            if defect[older, word] & low:
                defect[older] ^= defect[c]
                _add(alpha, rows, touch, broken[c], broken[older])
        _add(alpha, rows, touch, broken[c], broken[c])
        at = 0
        while slots[at] != broken[c]:
            at += 1
        live -= 1
        slots[at], slots[live] = slots[live], slots[at]
    return live


@kernel
def _add(alpha, rows, touch, source, target):
    """alpha_target += alpha_source over Z/2; a class added to itself is cleared."""
    for block in range(rows.shape[1]):
        bits = rows[source, block]
        while bits:
            x = 64 * block + _lowest(bits)
            bits &= bits - np.uint64(1)
            some = np.uint64(0)
            for word in range(alpha.shape[2]):
                alpha[target, x, word] ^= alpha[source, x, word]
                some |= alpha[target, x, word]
            if (some != 0) != _has_bit(rows, target, x):
                _flip_bit(rows, target, x)
                _flip_bit(touch, x, target)


@kernel
def _set(alpha, rows, touch, u, v, i):
    """alpha_i(uv) = 1, for an edge that is new."""
    for a, b in ((u, v), (v, u)):
        _flip_bit(alpha[i], a, b)
        if not _has_bit(rows, i, a):
            _flip_bit(rows, i, a)
            _flip_bit(touch, a, i)


@kernel
def _has_bit(rows, x, i):
    return (rows[x, i >> 6] >> np.uint64(i & 63)) & np.uint64(1) != 0


@kernel
def _flip_bit(rows, x, i):
    rows[x, i >> 6] ^= np.uint64(1) << np.uint64(i & 63)


DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
POSITION = np.empty(64, np.int64)  # of the only bit that is set, by the product's six top bits
POSITION[[(0x03F79D71B4CB0A89 << i) % 2**64 >> 58 for i in range(64)]] = np.arange(64)


@kernel
def _lowest(bits):
    """Position of the lowest bit that is set."""
    return POSITION[((bits & (~bits + np.uint64(1))) * DE_BRUIJN) >> np.uint64(58)]


@kernel
def _root(parent, x):
    while parent[x] != x:
        parent[x] = parent[parent[x]]
        x = parent[x]
    return x


@kernel
def wasserstein_distance(full, part):
    """1-Wasserstein distance of two diagrams for the metric L-infinity; rows (birth, death) sorted by death."""
    full, part = _without_shared(full, part)
    if not full[:, 0].any() and not part[:, 0].any():
        cost, longest = _on_a_line(full[:, 1], part[:, 1])
        if cost > SMALL * longest:
            return cost
    return _in_the_plane(full, part)


@kernel
def _without_shared(full, part):
    """Both diagrams without the bars that they share: a best matching pairs equal points."""
    only_full, only_part = np.empty((len(full), 2)), np.empty((len(part), 2))
    i, j, m, n = 0, 0, 0, 0
    while i < len(full) or j < len(part):
        if i < len(full) and j < len(part) and full[i, 1] == part[j, 1] and full[i, 0] == part[j, 0]:
            i += 1
            j += 1
        elif j == len(part) or (i < len(full) and full[i, 1] < part[j, 1]):
            only_full[m, 0], only_full[m, 1] = full[i, 0], full[i, 1]
            i += 1
            m += 1
        else:
            only_part[n, 0], only_part[n, 1] = part[j, 0], part[j, 1]
            j += 1
            n += 1
    return only_full[:m], only_part[:n]


@kernel
def _on_a_line(full, part):
    """1-Wasserstein distance of diagrams whose births are all 0, from sorted deaths; and the last death.

    Sweep the line. V(s) is the least cost with s more deaths of `full` than of `part` carried along. It is convex, so
    two heaps hold its slopes left and right of s = 0. A death x of `full` is carried (s + 1) or left to the diagonal
    (x / 2): the slope -x / 2 enters. A death of `part` enters x / 2. A gap g adds g |s|: g to the slopes on the right
    and -g to those on the left, stored lazily as x. The page "The fitness" of the book has the proof.
    """
    left = np.empty(len(full) + len(part) + 1)  # with the sign changed: both are min-heaps
    right = np.empty(len(full) + len(part) + 1)
    lefts, rights, i, j, cost, x = np.int64(0), np.int64(0), 0, 0, 0.0, 0.0  # as in `_sweep`
    while i < len(full) or j < len(part):
        if j == len(part) or (i < len(full) and full[i] < part[j]):
            x = full[i]
            i += 1
            slope = -_push_pop(left, lefts, -x / 2) - x
            cost -= slope
            rights = _push(right, rights, slope - x)
        else:
            x = part[j]
            j += 1
            slope = _push_pop(right, rights, -x / 2) + x
            cost += slope
            lefts = _push(left, lefts, -slope - x)
    return cost, x


@kernel
def _push(heap, size, value):
    hole = size
    while hole and heap[(hole - 1) >> 1] > value:
        heap[hole] = heap[(hole - 1) >> 1]
        hole = (hole - 1) >> 1
    heap[hole] = value
    return size + 1


@kernel
def _push_pop(heap, size, value):
    """The smallest of `value` and the heap's values; the others stay in the heap."""
    if size == 0 or value <= heap[0]:
        return value
    smallest, hole = heap[0], 0
    while True:
        child = 2 * hole + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[hole] = heap[child]
        hole = child
    heap[hole] = value
    return smallest


@kernel
def _in_the_plane(full, part):
    """1-Wasserstein distance of any two diagrams.

    The cost of a matching is summed from its pairs, so no digits cancel. But the search for the matching rounds in the
    scale of the longest bar. If the cost is far below that, no bar that costs more on the diagonal is left there in a
    best matching. So twice the cost is a price as good, and the search is repeated in that scale.
    """
    highest = 0.0
    for bars in (full, part):
        for birth, death in bars:
            highest = max(highest, (death - birth) / 2)
    cost = _assignment(full, part, highest)
    while 0 < cost < SMALL * highest:
        highest = 2 * cost
        cost = _assignment(full, part, highest)
    return cost


@kernel
def _assignment(full, part, highest):
    """Cost of a best matching, found with prices of at most `highest` for the way to the diagonal.

    A point of `full` pays its way to the diagonal in advance and gets it back when it is matched (`saved`). A point of
    `part` goes to a point of `full`, or to the diagonal (`exits`). That is an assignment, solved by shortest augmenting
    paths (Jonker, Volgenant 1987): `price` holds the duals of the points of `full`, 0 for those without an owner. For
    each point of `part`, the longest bar first, Dijkstra's algorithm finds the nearest free point or exit.
    """
    columns = len(full)
    birth, death = full[:, 0].copy(), full[:, 1].copy()
    saved = np.minimum((death - birth) / 2, highest)
    exits = np.minimum((part[:, 1] - part[:, 0]) / 2, highest)
    price = np.zeros(columns)
    owner = np.full(columns, -1, np.int64)
    chosen = np.full(len(part), -1, np.int64)
    scanned, lengths = np.empty(columns, np.int64), np.empty(columns)
    for start in np.argsort(-exits):
        base = -saved - price  # infinite once a column is scanned
        way = np.full(columns, np.inf)  # to the columns that are not scanned
        before = np.full(columns, start, np.int64)
        exit_row, exit_way = start, exits[start]
        i, offset, count = start, 0.0, 0
        while True:
            x, y, shortest = part[i, 0], part[i, 1], np.inf
            for c in range(columns):
                new = max(abs(x - birth[c]), abs(y - death[c])) + base[c] + offset
                closer = new < way[c]
                way[c] = new if closer else way[c]
                before[c] = i if closer else before[c]
                shortest = min(shortest, way[c])
            if exit_way <= shortest:
                i, j = exit_row, columns
                break
            j = 0
            while way[j] != shortest:
                j += 1
            if owner[j] < 0:
                i = before[j]
                break
            i = owner[j]
            cost = max(abs(part[i, 0] - birth[j]), abs(part[i, 1] - death[j])) + base[j]
            offset = shortest - cost
            if exits[i] + offset < exit_way:
                exit_row, exit_way = i, exits[i] + offset
            scanned[count], lengths[count] = j, shortest
            count += 1
            base[j] = way[j] = np.inf
        for s in range(count):
            price[scanned[s]] += lengths[s] - min(shortest, exit_way)
        while True:  # the path changes owners, back to its start
            previous = chosen[i]
            chosen[i] = j
            if j < columns:
                owner[j] = i
            if i == start:
                break
            j = previous
            i = before[j]

    total = (death - birth)[owner < 0].sum() / 2
    for i, j in enumerate(chosen):
        if j == columns:
            total += (part[i, 1] - part[i, 0]) / 2
        else:
            total += max(abs(part[i, 0] - birth[j]), abs(part[i, 1] - death[j]))
    return total


@kernel
def tree_distances(delta, population, trees):
    """Distance of each row's diagram of dimension 0 from the full one, (p,): one call, no Python."""
    found = np.empty(len(population))
    for i in range(len(population)):
        found[i] = wasserstein_distance(trees, tree_bars(delta, population[i]))
    return found


@kernel
def rips_distances(first, second, length, n, population, trees, loops):
    """Distances of each row's diagrams in dimensions 0 and 1 from the full ones, (p, 2)."""
    found = np.empty((len(population), 2))
    for i in range(len(population)):
        part_trees, part_loops = rips_bars(first, second, length, population[i], n)
        found[i, 0] = wasserstein_distance(trees, part_trees)
        found[i, 1] = wasserstein_distance(loops, part_loops)
    return found
