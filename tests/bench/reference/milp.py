"""The least possible highest node load of a mix, every instance on a set of its narrowest width, by HiGHS.

Instances of one demand are alike, and so are nodes of one kind: a variable counts how many instances of a demand go to
sets of one make-up, and others how many of them use each node. Every such count can be dealt out to sets again (a node
is used at most once by each, and the sums match), so this is exact for CPUs. Memory of wide instances is a flow that
is bounded by those counts: a relaxation, whose optimum is a bound, and the optimum only where a plan reaches it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, inf, lcm

import highspy
import numpy as np

from incus_numa.model.instance import Instance
from tests.bench.reference.cases import UNIT, Case
from tests.bench.reference.ground import PLENTY, Ground, Kinds, Make, dot, kinds_of

MAKES_LIMIT = 3000
"""Make-ups of one demand's sets; a demand with more is spread freely, which gives a bound only."""

UNITS_LIMIT = 100_000
"""Loads are counted in whole units if a common one is no smaller than one part in this many."""

Shape = tuple[int, float, int]
"""vCPUs, weight, bytes: what makes instances alike."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """`bound` is never above the least possible highest load; `exact` if it is that load."""

    bound: float
    exact: bool
    feasible: bool = True


@dataclass(kw_only=True)
class Rows:
    """A linear program row by row."""

    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    integer: list[bool] = field(default_factory=list)
    rows: list[tuple[float, dict[int, float], float]] = field(default_factory=list)

    def variable(self, upper: float, *, integer: bool = True, lower: float = 0.0) -> int:
        """A new variable's index."""
        self.lower.append(lower)
        self.upper.append(upper)
        self.integer.append(integer)
        return len(self.lower) - 1

    def row(self, least: float, terms: Mapping[int, float], most: float) -> None:
        """least <= sum of terms <= most."""
        self.rows.append((least, dict(terms), most))


def shape_of(one: Instance) -> Shape:
    """What the optimum needs to know of an instance."""
    return one.demand.vcpus or 1, one.demand.weight, one.demand.memory_bytes or 0


@dataclass(kw_only=True)
class Demands:
    """The mix by shape, and the make-ups of each shape's narrowest sets; None where these are too many."""

    ground: Ground
    kinds: Kinds
    counts: Counter[Shape]
    makes: dict[Shape, tuple[Make, ...] | None]

    def width(self, shape: Shape) -> int | None:
        """The narrowest width of a shape when it is alone; None where it is not known, 0 where nothing holds it."""
        makes = self.makes[shape]
        return None if makes is None else sum(makes[0]) if makes else 0


def demands_of(case: Case) -> Demands:
    """The mix of a case."""
    kinds = kinds_of(case.ground, by_memory=case.with_memory)
    counts = Counter(shape_of(one) for one in case.instances)
    makes = {shape: kinds.narrowest(shape[0], shape[2], MAKES_LIMIT) for shape in counts}
    return Demands(ground=case.ground, kinds=kinds, counts=counts, makes=makes)


def simple_bound(demands: Demands) -> float:
    """The mean load, or what the worst instance makes of the largest of its sets."""
    total = sum(shape[1] * count for shape, count in demands.counts.items()) / sum(demands.ground.cpus)
    single = [
        shape[1] / max(dot(make, demands.kinds.cpus) for make in makes)
        for shape, makes in demands.makes.items()
        if makes
    ]
    return max(total, *single, 0.0)


class Model:
    """The program of one mix. Loads are in parts of 1 / `unit`."""

    def __init__(self, demands: Demands, most: float) -> None:
        self.demands = demands
        self.unit, self.whole = _unit(demands)
        self.rows = Rows()
        least = simple_bound(demands) * self.unit
        if self.whole:
            least = ceil(least - 1e-6)
        self.top = self.rows.variable(max(least, most * self.unit + 1e-6), integer=self.whole, lower=least)
        self.load: list[dict[int, float]] = [{} for _ in demands.ground.ids]
        self.memory: list[dict[int, float]] = [{} for _ in demands.ground.ids]
        self.relaxed = False
        for shape, count in demands.counts.items():
            self._add_shape(shape, count)
        for node, terms in enumerate(self.load):
            if terms:
                self.rows.row(-inf, {**terms, self.top: -1.0}, 0.0)
            if self.memory[node] and demands.ground.memory[node] < PLENTY:
                self.rows.row(-inf, self.memory[node], demands.ground.memory[node] / UNIT)

    def _add_shape(self, shape: Shape, count: int) -> None:
        makes = self.demands.makes[shape]
        if makes is None:
            self._add_freely(shape, count)
            return
        used = {}
        for make in makes:
            how_many = self.rows.variable(count, lower=count if len(makes) == 1 else 0)
            used[how_many] = 1.0
            self._add_make(shape, make, how_many, count)
        self.rows.row(count, used, count)

    def _add_make(self, shape: Shape, make: Make, how_many: int, count: int) -> None:
        kinds, rows = self.demands.kinds, self.rows
        part = float(Fraction(shape[1]) * self.unit / dot(make, kinds.cpus))
        uses: dict[int, int] = {}
        for wanted, members in zip(make, kinds.members, strict=True):
            if wanted == len(members):
                uses |= dict.fromkeys(members, how_many)
            elif wanted:
                mine = {node: rows.variable(count) for node in members}
                rows.row(0.0, {**dict.fromkeys(mine.values(), 1.0), how_many: -float(wanted)}, 0.0)
                if sum(make) > 1:
                    for one in mine.values():
                        rows.row(-inf, {one: 1.0, how_many: -1.0}, 0.0)
                uses |= mine
        for node, variable in uses.items():
            if self.demands.ground.cpus[node]:
                self.load[node][variable] = self.load[node].get(variable, 0.0) + part
        size = shape[2] / UNIT
        if size and sum(make) == 1:
            for node, variable in uses.items():
                self.memory[node][variable] = self.memory[node].get(variable, 0.0) + size
        elif size:
            self._add_flow(size, how_many, uses, count)

    def _add_flow(self, size: float, how_many: int, uses: Mapping[int, int], count: int) -> None:
        """Memory of wide instances: anywhere on the nodes that they use."""
        self.relaxed = True
        flows = {node: self.rows.variable(size * count, integer=False) for node in uses}
        self.rows.row(0.0, {**dict.fromkeys(flows.values(), 1.0), how_many: -size}, 0.0)
        for node, flow in flows.items():
            self.rows.row(-inf, {flow: 1.0, uses[node]: -size}, 0.0)
            self.memory[node][flow] = 1.0

    def _add_freely(self, shape: Shape, count: int) -> None:
        """Weight that may go anywhere: less than what the sets allow, so a bound all the same."""
        self.relaxed = True
        cpus = self.demands.ground.cpus
        parts = {node: self.rows.variable(inf, integer=False) for node in range(len(cpus)) if cpus[node]}
        amount = shape[1] * count * self.unit
        self.rows.row(amount, {part: float(cpus[node]) for node, part in parts.items()}, amount)
        for node, part in parts.items():
            self.load[node][part] = 1.0


def solve(demands: Demands, *, most: float, time_limit_s: float) -> Best:
    """The optimum, where a plan with a highest load of `most` is known to exist; `inf` where none is."""
    known = most < inf
    model = Model(demands, most if known else 4.0 * sum(s[1] * n for s, n in demands.counts.items()))
    least = model.rows.lower[model.top] / model.unit
    if known and most <= least * (1 + 1e-9):
        return Best(bound=most, exact=True)
    solver = highspy.Highs()
    options = {"output_flag": False, "threads": 1, "time_limit": time_limit_s, "mip_rel_gap": 1e-6}
    if model.whole:
        options["mip_abs_gap"] = 0.999
    for name, value in options.items():
        solver.setOptionValue(name, value)
    solver.passModel(_program(model.rows, model.top))
    solver.run()
    status, info = solver.getModelStatus(), solver.getInfo()
    if status == highspy.HighsModelStatus.kInfeasible:
        return Best(bound=inf, exact=not known, feasible=False)
    bound = info.mip_dual_bound
    if model.whole:
        bound = ceil(bound - 1e-5)
    bound = max(least, bound / model.unit)
    proven = status == highspy.HighsModelStatus.kOptimal and not model.relaxed
    return Best(bound=bound, exact=proven or bound >= most * (1 - 1e-9))


def _unit(demands: Demands) -> tuple[int, bool]:
    """A common denominator of all loads that sets can get; 1 and False where there is no good one."""
    unit = 1
    for shape, makes in demands.makes.items():
        if makes is None:
            return 1, False
        for make in makes:
            unit = lcm(unit, (Fraction(shape[1]) / dot(make, demands.kinds.cpus)).denominator)
            if unit > UNITS_LIMIT:
                return 1, False
    return unit, True


def _program(rows: Rows, top: int) -> highspy.HighsLp:
    program = highspy.HighsLp()
    program.num_col_, program.num_row_ = len(rows.lower), len(rows.rows)
    cost = np.zeros(len(rows.lower))
    cost[top] = 1.0
    program.col_cost_ = cost
    program.col_lower_, program.col_upper_ = np.array(rows.lower), np.array(rows.upper)
    program.row_lower_ = np.array([least for least, _, _ in rows.rows])
    program.row_upper_ = np.array([most for _, _, most in rows.rows])
    kinds = highspy.HighsVarType
    program.integrality_ = [kinds.kInteger if whole else kinds.kContinuous for whole in rows.integer]
    matrix = program.a_matrix_
    matrix.format_ = highspy.MatrixFormat.kRowwise
    matrix.start_ = np.cumsum([0, *(len(terms) for _, terms, _ in rows.rows)])
    matrix.index_ = np.array([index for _, terms, _ in rows.rows for index in terms])
    matrix.value_ = np.array([value for _, terms, _ in rows.rows for value in terms.values()])
    return program
