"""Natural loops of a function, and what an innermost one looks like from outside."""

from __future__ import annotations

from dataclasses import dataclass, field

from optmigd.enclave_shim.toolchain.marking.ir import Block, Function


@dataclass
class Loop:
    """An innermost natural loop with one way in.

    Attributes:
        header: index of its first block.
        before: index of the only block that enters it; its terminator leads nowhere else.
        blocks: indices of all its blocks.
        always: blocks that run each time round, before any exit can be taken.
    """

    header: int
    before: int
    blocks: set[int]
    always: set[int] = field(default_factory=set)


class Flow:
    """The control flow of a function: predecessors and dominators."""

    def __init__(self, function: Function) -> None:
        self.blocks = function.blocks
        self._index = {block.name: number for number, block in enumerate(function.blocks)}
        self.successors = [self._targets(block) for block in function.blocks]
        self.predecessors: list[list[int]] = [[] for _ in function.blocks]
        for number, targets in enumerate(self.successors):
            for target in targets:
                self.predecessors[target].append(number)
        self._order = self._postorder()
        self._rank = {block: rank for rank, block in enumerate(self._order)}
        self._parents = self._dominators()

    def _targets(self, block: Block) -> list[int]:
        return sorted({self._index[name] for name in block.successors if name in self._index})

    def _postorder(self) -> list[int]:
        order: list[int] = []
        seen = {0}
        stack = [(0, iter(self.successors[0]))]
        while stack:
            block, targets = stack[-1]
            for target in targets:
                if target not in seen:
                    seen.add(target)
                    stack.append((target, iter(self.successors[target])))
                    break
            else:
                order.append(block)
                stack.pop()
        return order

    def _dominators(self) -> dict[int, int]:
        """Immediate dominators. Source: Cooper, Harvey, Kennedy, 'A Simple, Fast Dominance
        Algorithm', 2001."""
        parents = {0: 0}
        changed = True
        while changed:
            changed = False
            for block in reversed(self._order):
                if block == 0:
                    continue
                known = [one for one in self.predecessors[block] if one in parents]
                if not known:
                    continue
                parent = known[0]
                for other in known[1:]:
                    parent = self._meet(parent, other, parents)
                if parents.get(block) != parent:
                    parents[block] = parent
                    changed = True
        return parents

    def _meet(self, one: int, other: int, parents: dict[int, int]) -> int:
        while one != other:
            while self._rank[one] < self._rank[other]:
                one = parents[one]
            while self._rank[other] < self._rank[one]:
                other = parents[other]
        return one

    def dominates(self, one: int, other: int) -> bool:
        """Whether every way to `other` leads through `one`."""
        if other not in self._parents:
            return False
        while True:
            if other == one:
                return True
            parent = self._parents[other]
            if parent == other:
                return False
            other = parent

    def innermost_loops(self) -> list[Loop]:
        """The innermost loops that have one way in."""
        latches: dict[int, list[int]] = {}
        for block in self._order:
            for target in self.successors[block]:
                if self.dominates(target, block):
                    latches.setdefault(target, []).append(block)
        bodies = {header: self._body(header, ends) for header, ends in latches.items()}
        loops = []
        for header, body in bodies.items():
            if any(other in body for other in bodies if other != header):
                continue
            outside = [one for one in self.predecessors[header] if one not in body]
            if len(outside) != 1 or self.successors[outside[0]] != [header]:
                continue
            if self.blocks[outside[0]].terminator.opcode != "br":
                continue
            loop = Loop(header, outside[0], body)
            exits = [
                one
                for one in body
                if any(to not in body for to in self.successors[one]) or not self.successors[one]
            ]
            loop.always = {
                block
                for block in body
                if all(self.dominates(block, end) for end in latches[header])
                and all(self.dominates(block, way) for way in exits)
            }
            loops.append(loop)
        return loops

    def _body(self, header: int, ends: list[int]) -> set[int]:
        body = {header}
        waiting = list(ends)
        while waiting:
            block = waiting.pop()
            if block not in body:
                body.add(block)
                waiting.extend(self.predecessors[block])
        return body
