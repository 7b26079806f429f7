"""One device's place in a run: its stage, its group, its copies; how it enters a new generation."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from greentrain.actions import lower
from greentrain.errors import UsageError
from greentrain.plan import Plan, Stage
from greentrain.runtime.backups import Backups, needs_backups
from greentrain.runtime.checkpoints import load_layers
from greentrain.runtime.copies import Copies
from greentrain.runtime.crew import Crew
from greentrain.runtime.crew import State as Rest
from greentrain.runtime.devices import torch_device
from greentrain.runtime.executor import Executor
from greentrain.runtime.group import Links, RunGroup, form, open_store
from greentrain.runtime.job import Job
from greentrain.runtime.membership import Decision
from greentrain.runtime.network import free_port
from greentrain.runtime.split_layer import SplitLayer, stage_blocks
from greentrain.runtime.states import State, decode, encode, layer_of, moves_of, put, take, travel
from greentrain.runtime.wire import Digest, Form, Holding, Wish
from greentrain.summary import Recovery
from greentrain.workloads.workload import Tensors, TensorSpec, block_outputs, run_blocks, structure_sha256

__all__ = ["Session", "StageMaker", "stage_of"]


def stage_of(plan: Plan, device: str) -> Stage:
    """The stage that a device works in."""
    return next(stage for stage in plan.stages if device in stage.devices)


class StageMaker:
    """Builds the blocks of any stage of a job's model.

    Raises:
        UsageError: This machine builds another model than the plan was made for.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        blocks = job.workload.build(job.seed)
        example, _ = job.workload.example(1)
        self._outputs_L: list[tuple[TensorSpec, ...]] = block_outputs(blocks, example)
        self.layers_n: int = len(blocks)
        built = structure_sha256(blocks, self._outputs_L)
        if built != job.plan.structure_sha256:
            raise UsageError(
                f"plan: made for a model {job.plan.model!r} with structure {job.plan.structure_sha256[:12]}, "
                f"this machine builds {built[:12]}.",
                hint="Install the same versions on every device, then measure and schedule again.",
            )
        self.built_bytes: int = sum(tensor.nbytes for block in blocks for tensor in block.state_dict().values())
        # Only the first stage is made of them: the rest of the model needs no memory for long.
        self._fresh: list[nn.Module] | None = blocks

    def executor(self, plan: Plan, device: str, old: Executor | None = None) -> Executor:
        """The executor of a device's stage; blocks that it has already are kept, as they are."""
        stage = stage_of(plan, device)
        index = plan.stages.index(stage)
        kept: dict[int, nn.Module] = {}
        if old is not None:
            start = stage_of(old.plan, device).start
            whole = ((layer, one) for layer, one in enumerate(old.blocks, start) if not isinstance(one, SplitLayer))
            kept = dict(whole)
        layers = range(stage.start, stage.stop)
        if not all(layer in kept for layer in layers):
            fresh = self._fresh or self._job.workload.build(self._job.seed)
            own = dict(zip(layers, stage_blocks(plan, device, fresh, self._outputs_L), strict=True))
            kept = {layer: kept.get(layer, own[layer]) for layer in layers}
        self._fresh = None
        return Executor(
            plan=plan,
            device=device,
            actions=lower(plan)[device],
            blocks=[kept[layer] for layer in layers],
            workload=self._job.workload,
            incoming=self._outputs_L[stage.start - 1] if index > 0 else (),
            outgoing=self._outputs_L[stage.stop - 1],
            group=None,
            options=self._job.options,
            torch_device=torch_device(self._job.torch_device),
        )

    def warm_up(self) -> None:
        """Have torch load all that a round needs: seconds on a slow board, in which it answers nobody.

        Passes of one row through one block of each kind load the code of their kernels, which is no memory of the
        model.
        """
        parameter = nn.Parameter(torch.zeros(1))
        parameter.grad = torch.zeros(1)
        self._job.workload.make_optimizer([parameter]).step()
        decode(encode({"0.warm": parameter}))
        known: set[frozenset[type[nn.Module]]] = set()
        for index, block in enumerate(self._fresh or ()):
            kinds = frozenset(type(module) for module in block.modules())
            if kinds in known:
                continue
            tensors = self._entering(index)
            ends = [output.sum() for output in run_blocks((block,), tensors) if output.requires_grad]
            if ends:
                starts = [one for one in (*tensors, *block.parameters()) if one.requires_grad]
                torch.autograd.grad(ends, starts, allow_unused=True)
                known.add(kinds)

    def _entering(self, index: int) -> Tensors:
        """One row of what enters a block: of the example, or zeros."""
        if index == 0:
            return self._job.workload.example(1)[0]
        return tuple(
            torch.zeros((1, *spec.shape), dtype=spec.dtype, requires_grad=spec.needs_gradient)
            for spec in self._outputs_L[index - 1]
        )

    def origin(self, start: int, stop: int) -> State:
        """The tensors before the first round: of the seed, or of the checkpoint that the run goes on from."""
        if self._job.resumed is not None:
            return load_layers(self._job.resumed, start, stop)
        blocks = self._job.workload.build(self._job.seed)[start:stop]
        return {
            f"{layer}.{name}": parameter.detach()
            for layer, block in enumerate(blocks, start=start)
            for name, parameter in block.named_parameters()
            if parameter.requires_grad
        }


@dataclass
class Session:
    """What changes when the members change.

    Attributes:
        job: What to do.
        maker: Builds stages.
        crew: This process among the others; None where a loss ends the run.
        plan: The present plan.
        done: Rounds whose update has been applied.
        ready: Whether the gradients of round ``done`` are complete.
        digest: The last round in one line.
        begin_s: Monotonic instant of the start of the run.
        recoveries: So far.
        moved_bytes: What arrived here in the last change.
        proposal: The plan that the leader wants to go on with when all meet; None: the present one.
    """

    job: Job
    maker: StageMaker
    crew: Crew | None
    plan: Plan
    done: int
    ready: bool = False
    digest: Digest | None = None
    begin_s: float = 0.0
    recoveries: list[Recovery] = field(default_factory=list[Recovery])
    moved_bytes: int = 0
    proposal: Plan | None = None
    _copies: Copies = field(default_factory=Copies)
    _backups: Backups | None = None
    _executor: Executor | None = None
    _group: RunGroup | None = None
    # The store of the generation that this device has decided, with its port.
    _server: tuple[int, TCPStore] | None = None

    @property
    def executor(self) -> Executor:
        """The present stage."""
        assert self._executor is not None
        return self._executor

    @property
    def group(self) -> RunGroup:
        """The present group."""
        assert self._group is not None
        return self._group

    def start(self, group: RunGroup) -> None:
        """Take the place in the first plan, whose members have met in this group."""
        executor = self.maker.executor(self.plan, self.job.device)
        if self.job.resumed is not None:
            stage = stage_of(self.plan, self.job.device)
            put(executor, stage.start, self.maker.origin(stage.start, stage.stop))
        self._settle(group, executor)

    def before_round(self) -> int:
        """Go on with the copies of stages that one device holds; returns the bytes that travelled."""
        if self._backups is None:
            return 0
        start = stage_of(self.plan, self.job.device).start
        return self._backups.before_round(self.done, lambda layer: take(self.executor, start, layer))

    @property
    def _whole_stage(self) -> Stage | None:
        """The present stage where this device holds its layers whole: else it has them in copies only."""
        if self._executor is None:
            return None
        stage = stage_of(self.plan, self.job.device)
        return stage if stage.sharing == "samples" else None

    def rest(self) -> Form | None:
        """Come to rest and wait for the decision; see :meth:`greentrain.runtime.crew.Crew.regroup`."""
        assert self.crew is not None
        stage = self._whole_stage
        origin = Holding(start=0, stop=self.maker.layers_n, round=self.job.first_round)
        state = Rest(
            done=self.done, ready=self.ready, own=None if stage is None else (stage.start, stage.stop),
            holdings=(*self._copies.holdings(), origin),
        )  # fmt: skip
        return self.crew.regroup(state, self._compose)

    def enter(self, found: Form) -> None:
        """Take the place that a new generation gives to this device. Call on all its members.

        Raises:
            PeersLostError: Another member was lost meanwhile; come to rest again.
            RuntimeError: The same, from torch.
        """
        assert self.crew is not None
        self._roll_forward(found)
        moves = moves_of(found.kept, found.plan)
        given = {
            (move.start, move.stop): self._at(found.round, move.start, move.stop)
            for move in moves
            if move.source == self.job.device
        }
        if self._group is not None:
            self._group.close()
        links = Links()
        self.crew.watch(links.cut)
        if self._server is not None and self._server[0] != found.port:
            self._server = None
        store = open_store(found.host, found.port, leads=False, timeout_s=self.job.message_timeout_s)
        boards = {member.device: member.board for member in found.members}
        group = form(
            found.plan, self.job.device, store, links, boards=boards, generation=found.generation,
            timeout_s=self.job.message_timeout_s,
        )  # fmt: skip
        self._group = group
        arrived, self.moved_bytes = group.apart(lambda: travel(moves, group, given))
        stage = stage_of(found.plan, self.job.device)
        own = self._at(found.round, stage.start, stage.stop)
        executor = self.maker.executor(found.plan, self.job.device, self._executor)
        put(executor, stage.start, {**own, **arrived})
        if self._executor is not None:
            self._executor.close()
        self.plan, self.done, self.ready = found.plan, found.round, False
        self._copies.drop(after=found.round)
        self._settle(group, executor)

    def forget(self) -> None:
        """Give up the place and all copies: others have gone on."""
        if self._group is not None:
            self._group.close()
        if self._executor is not None:
            self._executor.close()
        self.done, self.ready, self.digest = self.job.first_round, False, None
        self._executor = self._group = self._backups = self._server = None
        self._copies.clear()

    def close(self) -> None:
        """Leave the group and the crew."""
        if self._group is not None:
            self._group.close()
        if self.crew is not None:
            self.crew.close()

    def _settle(self, group: RunGroup, executor: Executor) -> None:
        executor.group = group
        self._group, self._executor, self._backups = group, executor, None
        if self.crew is None or self.job.recovering is None:
            return
        self.crew.watch(group.abort)
        executor.commit = self._commit
        if needs_backups(self.plan):
            period = self.job.recovering.backup_rounds(self.plan)
            self._backups = Backups(
                self.plan, self.job.device, group, self._copies, period, self.job.run_dir, self.job.first_round
            )
        else:
            self._copies.drop(before=self.done + 1)

    def _commit(self, loss: float) -> None:
        assert self.crew is not None
        self.ready = True
        self.crew.commit(self.done, loss, self.digest)
        self.done += 1
        self.ready = False

    def _roll_forward(self, found: Form) -> None:
        """Apply the last update where others have: this device's gradients are complete."""
        if self.ready and found.reached == self.done + 1:
            self.executor.update()
            self.done += 1
        self.ready = False

    def _at(self, round_: int, start: int, stop: int) -> State:
        """What this device has of some layers after a round."""
        found = self.maker.origin(start, stop) if round_ == self.job.first_round else {}
        found.update(self._copies.part(round_, start, stop))
        stage = self._whole_stage
        if stage is not None and self.done == round_:
            live = take(self.executor, stage.start)
            found.update({name: tensor for name, tensor in live.items() if start <= layer_of(name) < stop})
        return found

    def _compose(self, decision: Decision, wishes: tuple[Wish, ...]) -> Form:
        """The leader's proposal for the new generation."""
        assert self.crew is not None
        assert self.job.recovering is not None
        # Seen from this device's plan: a generation that it has not entered counts as if it had never been.
        alive = {member.device: member for member in decision.members}
        joined = {wish.member.device: wish.member for wish in wishes if wish.member.device not in alive}
        lost = frozenset(self.plan.devices) - alive.keys() - joined.keys()
        new = frozenset({**alive, **joined}) - set(self.plan.devices)
        back = joined.keys() & set(self.plan.devices)
        proposal, self.proposal = self.proposal, None
        if proposal is not None and not lost and not new and not back:
            plan = proposal
        else:
            plan = self.job.recovering.repair(self.plan, lost, new | back)
        members = tuple({**alive, **joined}[device] for device in plan.devices)
        host, port = self.crew.host, free_port()
        # It must listen before the others hear of it.
        self._server = port, open_store(host, port, leads=True, timeout_s=self.job.message_timeout_s)
        return Form(
            generation=decision.generation, members=members, plan=plan, round=decision.round, reached=decision.reached,
            kept=decision.kept, host=host, port=port, recoveries=tuple(self.recoveries),
            lost=tuple(device for device in self.plan.devices if device not in alive),
            joined=tuple(device for device in plan.devices if device in joined),
            elapsed_s=time.monotonic() - self.begin_s,
            losses=self.crew.losses_until(decision.reached)[: decision.round - self.job.first_round],
        )  # fmt: skip
