"""Vietoris-Rips persistence of subsets of a finite metric space, compiled for the CPU.

The layer's distances are sorted once (`sorted_edges`); every subset is then read through
its indices, so that a population costs no copies. The kernels release the interpreter's
lock: `in_threads` runs them over a population on all cores.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float32, Int
from numba import njit


class Edges(NamedTuple):
    """All m = n (n - 1) / 2 edges of a metric space, shortest first."""

    first: Int[np.ndarray, " m"]
    second: Int[np.ndarray, " m"]
    length: Float32[np.ndarray, " m"]


def sorted_edges(delta: Float32[np.ndarray, "n n"]) -> Edges:
    """Edges of a distance matrix in the order of the Vietoris-Rips filtration; ties by index."""
    first, second = np.triu_indices(len(delta), 1)
    length = delta[first, second]
    order = np.argsort(length, kind="stable")
    return Edges(first[order].astype(np.int32), second[order].astype(np.int32), length[order])


def in_threads(work: Callable[[slice], None], size: int) -> None:
    """Call `work` on slices that cover range(size), on as many threads as there are cores.

    OMP_NUM_THREADS, where it is set, is the limit, as for the libraries beneath.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = min(cores, int(os.environ.get("OMP_NUM_THREADS", cores)))
    step = max(1, size // (4 * cores))  # four parts a core even out unequal individuals
    parts = [slice(start, min(start + step, size)) for start in range(0, size, step)]
    if cores == 1 or len(parts) == 1:
        for part in parts:
            work(part)
        return
    with ThreadPoolExecutor(cores) as pool:  # a fresh pool costs 0.1 ms and survives a fork
        list(pool.map(work, parts))


@njit(nogil=True, cache=True)
@no_type_check
def tree_lengths(delta, members):
    """Edge lengths (k - 1) of the minimum spanning tree of delta[members][:, members].

    Prim's algorithm; reads the submatrix in place.
    """
    rest = members[1:].copy()
    lengths = np.empty(len(rest), delta.dtype)
    near = np.full(len(rest), np.inf, delta.dtype)
    row = delta[members[0]]
    for size in range(len(rest), 0, -1):
        best = 0
        for j in range(size):
            near[j] = min(near[j], row[rest[j]])
        for j in range(1, size):
            if near[j] < near[best]:
                best = j
        lengths[len(rest) - size] = near[best]
        row = delta[rest[best]]
        rest[best], near[best] = rest[size - 1], near[size - 1]
    return lengths


@njit(nogil=True, cache=True)
@no_type_check
def rips_bars(first, second, length, members, n):
    """Bars of the subset `members` in dimensions 0 (deaths) and 1 (births, deaths).

    Persistent cohomology over Z/2 (de Silva, Morozov, Vejdemo-Johansson 2011; annotations of
    Dey, Fan, Wang 2014), one edge uv at a time. Its new triangles are uvw for w in the lune,
    the common neighbours of u and v so far. An empty lune means that the edge joins two
    components or starts a class. Otherwise a live cocycle alpha extends over the triangles if
    and only if alpha(uw) + alpha(vw) is the same for all w of the lune, and that value is then
    alpha(uv); of the classes that fail, the youngest dies and is added to the others.

    Sets of vertices are rows of bits: near[u] the neighbours of u, alpha[i, u] those w with
    alpha_i(uw) = 1. Cocycles are sparse: touch[u] are the classes i with a non-empty row
    alpha[i, u], and an edge looks at no others; rows[i] are those u.
    """
    capacity = len(members) // 2 + 64  # live classes to have room for; the rest starts again
    while True:
        done, deaths, bars = _sweep(first, second, length, members, n, capacity)
        if done:
            return deaths, bars
        capacity *= 2


@njit(nogil=True, cache=True)
@no_type_check
def _sweep(first, second, length, members, n, capacity):
    """`rips_bars`, or a refusal if there is no room for `capacity` live classes."""
    k = len(members)
    words = (k + 63) >> 6
    local = np.full(n, -1, np.int64)
    local[members] = np.arange(k)
    near = np.zeros((k, words), np.uint64)
    degree = np.zeros(k, np.int64)
    parent = np.arange(k)
    deaths = np.empty(max(k - 1, 0), np.float64)
    bars = np.empty((16 * capacity, 2), np.float64)
    trees, dead, live = 0, 0, 0
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
                deaths[trees] = length[e]
                trees += 1
            else:
                if live == capacity:
                    return False, deaths, bars
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
                        if dead == len(bars):
                            return False, deaths, bars
                        bars[dead, 0], bars[dead, 1] = birth, length[e]
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
    return True, deaths, bars[:dead].copy()


@njit(nogil=True, cache=True)
@no_type_check
def _extend(alpha, touch, near, u, v, ones, broken):
    """Collect the classes that are 1 on uv, and those that do not extend; give their numbers."""
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


@njit(nogil=True, cache=True)
@no_type_check
def _kill(alpha, rows, touch, born, slots, live, lune, u, v, broken):
    """Let classes die until all extend over the lune; the dead move to slots[result:live]."""
    witness = 0
    while lune[witness] == 0:
        witness += 1
    low = lune[witness] & (~lune[witness] + np.uint64(1))
    # defect of a class: the w whose triangle disagrees with the witness's
    defect = np.empty((len(broken), len(lune)), np.uint64)
    for c in range(len(broken)):
        x = alpha[broken[c], u] ^ alpha[broken[c], v]
        defect[c] = (~x if x[witness] & low else x) & lune
    order = np.argsort(born[broken])
    for c in order[::-1]:  # youngest first
        word = 0
        while word < len(lune) and defect[c, word] == 0:
            word += 1
        if word == len(lune):
            continue  # an addition has mended it
        low = defect[c, word] & (~defect[c, word] + np.uint64(1))
        for older in order:
            if older == c:
                break
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


@njit(nogil=True, cache=True)
@no_type_check
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


@njit(nogil=True, cache=True)
@no_type_check
def _set(alpha, rows, touch, u, v, i):
    """alpha_i(uv) = 1, for an edge that is new."""
    for a, b in ((u, v), (v, u)):
        _flip_bit(alpha[i], a, b)
        if not _has_bit(rows, i, a):
            _flip_bit(rows, i, a)
            _flip_bit(touch, a, i)


@njit(nogil=True, cache=True)
@no_type_check
def _has_bit(rows, x, i):
    return (rows[x, i >> 6] >> np.uint64(i & 63)) & np.uint64(1) != 0


@njit(nogil=True, cache=True)
@no_type_check
def _flip_bit(rows, x, i):
    rows[x, i >> 6] ^= np.uint64(1) << np.uint64(i & 63)


DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
POSITION = np.empty(64, np.int64)  # of the only bit that is set, by the product's six top bits
POSITION[[(0x03F79D71B4CB0A89 << i) % 2**64 >> 58 for i in range(64)]] = np.arange(64)


@njit(nogil=True, cache=True)
@no_type_check
def _lowest(bits):
    """Position of the lowest bit that is set."""
    return POSITION[((bits & (~bits + np.uint64(1))) * DE_BRUIJN) >> np.uint64(58)]


@njit(nogil=True, cache=True)
@no_type_check
def _root(parent, x):
    while parent[x] != x:
        parent[x] = parent[parent[x]]
        x = parent[x]
    return x


@njit(nogil=True, cache=True)
@no_type_check
def line_distance(full, part):
    """1-Wasserstein distance between two diagrams whose births are all 0, from sorted deaths.

    Sweep the line. V(s) is the least cost with s more deaths of `full` than of `part` carried
    along; it is convex, so two heaps with the slopes left and right of s = 0 hold it. Meeting
    a death x of `full` carries it (s + 1) or leaves it to the diagonal (x / 2): the slope -x/2
    enters; one of `part` enters x/2. A gap g adds g |s|: g to the slopes on the right, -g on
    the left, stored lazily as x. The page "The fitness" of the book has the proof.
    """
    left = np.empty(len(full) + len(part) + 1, np.float64)  # negated: both are min-heaps
    right = np.empty(len(full) + len(part) + 1, np.float64)
    lefts, rights, cost = 0, 0, 0.0
    i, j = 0, 0
    while i < len(full) or j < len(part):
        if j == len(part) or (i < len(full) and full[i] <= part[j]):
            x = float(full[i])
            i += 1
            m = -_push_pop(left, lefts, -x / 2) - x
            cost -= m
            rights = _push(right, rights, m - x)
        else:
            x = float(part[j])
            j += 1
            m = _push_pop(right, rights, -x / 2) + x
            cost += m
            lefts = _push(left, lefts, -(m + x))
    return cost


@njit(nogil=True, cache=True)
@no_type_check
def _push(heap, size, value):
    hole = size
    while hole and heap[(hole - 1) >> 1] > value:
        heap[hole] = heap[(hole - 1) >> 1]
        hole = (hole - 1) >> 1
    heap[hole] = value
    return size + 1


@njit(nogil=True, cache=True)
@no_type_check
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


@njit(nogil=True, cache=True)
@no_type_check
def plane_distance(full, part):
    """1-Wasserstein distance of two diagrams, rows (birth, death), for the metric L-infinity.

    A point of `part` costs nothing to leave on the diagonal when it is charged for it in
    advance; so it either goes to its own diagonal point or to a point of `full`, whose own way
    to the diagonal is then saved. That is an assignment of rows to columns or to a private
    exit, solved by shortest augmenting paths (Jonker, Volgenant 1987): `price` holds the duals
    of the columns, 0 for those that are free. Costs are computed from the coordinates.
    """
    rows, columns = len(part), len(full)
    saved = (full[:, 1] - full[:, 0]) / 2
    exits = (part[:, 1] - part[:, 0]) / 2
    birth, death = full[:, 0].copy(), full[:, 1].copy()
    price = np.zeros(columns, np.float64)
    owner = np.full(columns, -1, np.int64)
    chosen = np.full(rows, -1, np.int64)  # the column, or `columns` for the exit
    cost = np.empty(columns, np.float64)

    free = np.arange(rows)
    for _ in range(2):  # augmenting row reduction: most rows find their column without a search
        waiting, left = len(free), 0
        at = 0
        budget = 4 * len(free)
        while at < waiting:
            i = free[at]
            at += 1
            _row(birth, death, saved, price, part[i, 0], part[i, 1], cost)
            best, first, second = -1, exits[i], np.inf
            for j in range(columns):
                if cost[j] < first:
                    best, first, second = j, cost[j], first
                elif cost[j] < second:
                    second = cost[j]
            if best < 0:
                chosen[i] = columns
                continue
            rival = owner[best]
            if rival >= 0 and (second <= first or budget <= 0):
                free[left] = i
                left += 1
                continue
            budget -= 1
            price[best] -= second - first
            owner[best], chosen[i] = i, best
            if rival >= 0:
                chosen[rival] = -1
                at -= 1
                free[at] = rival
        free = free[:left].copy()
        if left == 0:
            break
    for i in free:
        _augment(birth, death, saved, exits, part, price, owner, chosen, i)

    total = saved.sum()
    for i in range(rows):
        j = chosen[i]
        if j == columns:
            total += exits[i]
        else:
            total += max(abs(part[i, 0] - birth[j]), abs(part[i, 1] - death[j])) - saved[j]
    return total


@njit(nogil=True, cache=True)
@no_type_check
def _row(birth, death, saved, price, x, y, cost):
    """Reduced costs of matching the point (x, y) to each column."""
    for j in range(len(birth)):
        cost[j] = max(abs(x - birth[j]), abs(y - death[j])) - saved[j] - price[j]


@njit(nogil=True, cache=True, fastmath={"nnan", "nsz"})  # so that minima are vectorised
@no_type_check
def _augment(birth, death, saved, exits, part, price, owner, chosen, start):
    """Dijkstra from a row without a column to the nearest free column or exit."""
    columns = len(birth)
    base = -saved - price  # infinite once a column is scanned
    way = np.full(columns, np.inf)  # to the columns that are not scanned
    before = np.full(columns, start, np.int64)
    scanned, lengths, count = np.empty(columns, np.int64), np.empty(columns, np.float64), 0
    exit_row, exit_way = start, exits[start]
    i, offset = start, 0.0
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
    end = min(shortest, exit_way)
    for s in range(count):
        price[scanned[s]] += lengths[s] - end
    while True:
        previous = chosen[i]
        chosen[i] = j
        if j < columns:
            owner[j] = i
        if i == start:
            return
        j = previous
        i = before[j]


@njit(nogil=True, cache=True)
@no_type_check
def line_distances(full, parts):
    """`line_distance` of each row of `parts`, unsorted deaths (p, l), from `full`, (p,)."""
    found = np.empty(len(parts), np.float64)
    for i in range(len(parts)):
        found[i] = line_distance(full, np.sort(parts[i]))
    return found


@njit(nogil=True, cache=True)
@no_type_check
def tree_distances(delta, population, full):
    """`line_distance` of each row's tree from the deaths `full`, (p,): one call, no Python."""
    found = np.empty(len(population), np.float64)
    for i in range(len(population)):
        found[i] = line_distance(full, np.sort(tree_lengths(delta, population[i])))
    return found


@njit(nogil=True, cache=True)
@no_type_check
def rips_distances(first, second, length, n, population, deaths, bars):
    """Distances of each row's diagrams in dimensions 0 and 1 from the full ones, (p, 2)."""
    found = np.empty((len(population), 2), np.float64)
    for i in range(len(population)):
        part_deaths, part_bars = rips_bars(first, second, length, population[i], n)
        found[i, 0] = line_distance(deaths, part_deaths)
        found[i, 1] = plane_distance(bars, part_bars)
    return found
