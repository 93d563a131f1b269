"""Vietoris-Rips persistence of subsets of a finite metric space, compiled for the CPU.

The layer's distances are sorted once (`sorted_edges`); every subset is then read through
its indices, so that a population costs no copies. The kernels release the interpreter's
lock: `in_threads` runs them over a population on all cores.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float, Float32, Int
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
    """Call `work` on slices that cover range(size), on as many threads as there are cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
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

    Persistent cohomology over Z/2 (de Silva, Morozov, Vejdemo-Johansson 2011; Dey, Fan, Wang
    2014), one edge (u, v) at a time. Its new triangles are (u, v, w) for w in the lune, the
    common neighbours of u and v so far. An empty lune means that the edge joins two components
    or starts a class; a class i stays a cocycle if and only if alpha_i(uw) + alpha_i(vw) is the
    same for all w of the lune, and the value is then alpha_i(uv). Otherwise the youngest class
    that is violated dies and is added to the others that are. Rows of bits hold the neighbours
    of a vertex (`near`) and the live cocycles (`alpha[u, word, i]`: bit w is alpha_i(uw)).
    """
    k = len(members)
    words = (k + 63) >> 6
    local = np.full(n, -1, np.int64)
    local[members] = np.arange(k)
    near = np.zeros((k, words), np.uint64)
    degree = np.zeros(k, np.int64)
    parent = np.arange(k)
    capacity, live, dead, trees = 64, 0, 0, 0
    alpha = np.zeros((k, words, capacity), np.uint64)
    born = np.empty(capacity, np.int64)  # the edge that started the class
    flip = np.empty(capacity, np.uint64)  # all ones where alpha_i(uv) = 1
    bad = np.empty(capacity, np.uint64)
    deaths = np.empty(max(k - 1, 0), np.float64)
    bars = np.empty((64, 2), np.float64)
    lune = np.empty(words, np.uint64)
    one, zero = np.uint64(1), np.uint64(0)

    for e in range(len(length)):
        u, v = local[first[e]], local[second[e]]
        if u < 0 or v < 0:
            continue
        some = -1
        for word in range(words):
            lune[word] = near[u, word] & near[v, word]
            if some < 0 and lune[word] != zero:
                some = word
        if some < 0:
            root, other = _root(parent, u), _root(parent, v)
            if root != other:
                parent[root] = other
                deaths[trees] = length[e]
                trees += 1
            else:
                if live == capacity:
                    alpha = _wider(alpha)
                    capacity *= 2
                    grown = np.empty(capacity, np.int64)
                    grown[:live] = born
                    born, flip = grown, np.empty(capacity, np.uint64)
                    bad = np.empty(capacity, np.uint64)
                _set(alpha, u, v, live)
                born[live] = e
                live += 1
        elif live:
            low = lune[some] & (~lune[some] + one)  # one witness w of the lune
            a, b = alpha[u, some], alpha[v, some]
            for i in range(live):
                flip[i] = zero - np.uint64(((a[i] ^ b[i]) & low) != zero)
                bad[i] = zero
            for word in range(some, words):
                mask = lune[word]
                if mask != zero:
                    a, b = alpha[u, word], alpha[v, word]
                    for i in range(live):
                        bad[i] |= (a[i] ^ b[i] ^ flip[i]) & mask
            broken = False
            for i in range(live):
                broken |= bad[i] != zero
            if broken:
                before = live
                live = _kill(alpha, born, flip, lune, u, v, live, bad)
                for i in range(live, before):
                    if length[born[i]] < length[e]:
                        if dead == len(bars):
                            grown_bars = np.empty((2 * dead, 2), np.float64)
                            grown_bars[:dead] = bars
                            bars = grown_bars
                        bars[dead, 0], bars[dead, 1] = length[born[i]], length[e]
                        dead += 1
            for i in range(live):
                if flip[i] != zero:
                    _set(alpha, u, v, i)
        near[u, v >> 6] |= one << np.uint64(v & 63)
        near[v, u >> 6] |= one << np.uint64(u & 63)
        degree[u] += 1
        degree[v] += 1
        if degree[u] == k - 1 or degree[v] == k - 1:
            break  # a cone: nothing lives, nothing is born any more (the enclosing radius)
    return deaths, bars[:dead]


@njit(nogil=True, cache=True)
@no_type_check
def _kill(alpha, born, flip, lune, u, v, live, bad):
    """Remove the classes that the new triangles kill; they end in born[result:live]."""
    zero, one = np.uint64(0), np.uint64(1)
    k, words, _ = alpha.shape
    classes = np.flatnonzero(bad[:live])
    classes = classes[np.argsort(born[classes])]
    defect = np.empty((len(classes), words), np.uint64)  # bit w: triangle (u, v, w) is violated
    for c in range(len(classes)):
        i = classes[c]
        for word in range(words):
            defect[c, word] = (alpha[u, word, i] ^ alpha[v, word, i] ^ flip[i]) & lune[word]
    gone = np.empty(len(classes), np.int64)
    killed = 0
    for c in range(len(classes) - 1, -1, -1):  # youngest first
        word = 0
        while word < words and defect[c, word] == zero:
            word += 1
        if word == words:
            continue  # an earlier addition has mended it
        bit = defect[c, word] & (~defect[c, word] + one)
        p = classes[c]
        others = np.empty(c, np.int64)
        count = 0
        for d in range(c):
            if defect[d, word] & bit:
                for x in range(words):
                    defect[d, x] ^= defect[c, x]
                flip[classes[d]] ^= flip[p]
                others[count] = classes[d]
                count += 1
        if count:
            for x in range(k):
                for y in range(words):
                    row = alpha[x, y]
                    value = row[p]
                    if value != zero:
                        for o in range(count):
                            row[others[o]] ^= value
        gone[killed] = p
        killed += 1
    gone = np.sort(gone[:killed])
    for g in range(killed - 1, -1, -1):
        p, last = gone[g], live - 1
        for x in range(k):
            for y in range(words):
                alpha[x, y, p] = alpha[x, y, last]
                alpha[x, y, last] = zero
        flip[p] = flip[last]
        born[p], born[last] = born[last], born[p]
        live -= 1
    return live


@njit(nogil=True, cache=True)
@no_type_check
def _root(parent, x):
    while parent[x] != x:
        parent[x] = parent[parent[x]]
        x = parent[x]
    return x


@njit(nogil=True, cache=True)
@no_type_check
def _set(alpha, u, v, i):
    one = np.uint64(1)
    alpha[u, v >> 6, i] |= one << np.uint64(v & 63)
    alpha[v, u >> 6, i] |= one << np.uint64(u & 63)


@njit(nogil=True, cache=True)
@no_type_check
def _wider(alpha):
    k, words, capacity = alpha.shape
    wider = np.zeros((k, words, 2 * capacity), np.uint64)
    wider[:, :, :capacity] = alpha
    return wider


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
