"""`MemoryTable`: the memory of TGN with its mailbox in flat tensors, and PRES's correction of it."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from anabranch.temporal.event_memory import EventMemory, Update, newest_of
from anabranch.temporal.mailbox import LastMailbox, LogMailbox
from anabranch.temporal.messages import IdentityMessage, LastAggregator, MeanAggregator, TimeEncoder
from anabranch.temporal.running_moments import MemoryCorrection, RunningMoments
from anabranch.temporal.stream_state import check_like_nodes, check_no_nan, check_nodes, check_rows


class MemoryTable(EventMemory):
    """A vector for every node, updated by the events that it takes part in (TGN, arXiv 2006.10637, section 3.1).

    Every node keeps the events of its latest batch. When they are applied they become messages, made of the memories as
    they are then: `message(memory[node], memory[other], raw, time_encoding(t - last_update[node]))`. A node's messages
    become one, and `memory := GRU(that, memory)`, `last_update := the newest of their times`. When is said at
    EventMemory: while training, a batch late.

    Args:
        num_nodes, memory_dim, raw_msg_dim: sizes.
        time_dim: of the encoding of time.
        aggregator: "last": the newest event by (time, event id), all in fixed shapes; "mean"; or a module called with
            (messages `[m, C]`, index `[m]`, time `[m]`, dim_size) as PyG's are.
        message: module called with (z_src, z_dst, raw_msg, t_enc) `[m, ...]`, with `out_channels`; the first is the
            node's own memory. Targets get a copy with parameters of its own. Default: the four one behind the other.
        correction: PRES: what is stored is `correction(memory + mean increment of the node, GRU(...))`. The increments
            are those of the GRU, `GRU(...) - memory`: those of the corrected memory would predict themselves. They are
            recorded in `moments` when memories are written.
        untouched: what becomes of a node for which nothing waits when it is asked for: "keep" leaves it, and an event
            is applied once; "update" does as PyG: the node passes through GRU(0, memory), its last_update is 0, and
            events that were applied in eval mode, or in a batch where the node had the other role, wait on.
        device, dtype: of the state and the layers.

    State: `memory [num_nodes, memory_dim]`, `last_update` int64 `[num_nodes]`, `mailbox`, `moments`; in `state_dict`.

    Gradients reach the message modules, the time encoder, the GRU and a learned gamma; memories are stored detached.
    With "last" no call waits for a GPU (train() to eval() does) and `torch.compile(fullgraph=True)` takes forward and
    update_state. Otherwise a read waits for the number of messages. Bitwise the same for every number of threads as far
    as torch's matrix products are.
    """

    memory: Tensor

    def __init__(
        self,
        num_nodes: int,
        memory_dim: int,
        raw_msg_dim: int,
        *,
        time_dim: int = 100,
        aggregator: Literal["last", "mean"] | nn.Module = "last",
        message: nn.Module | None = None,
        correction: MemoryCorrection | None = None,
        untouched: Literal["keep", "update"] = "keep",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if untouched not in ("keep", "update"):
            raise ValueError(f"MemoryTable: untouched is {untouched!r}, must be 'keep' or 'update'; choose one")
        if isinstance(aggregator, str) and aggregator not in ("last", "mean"):
            raise ValueError(
                f"MemoryTable: aggregator is {aggregator!r}, must be 'last', 'mean' or a module; choose one"
            )
        self.num_nodes, self.memory_dim, self.raw_msg_dim, self.time_dim = num_nodes, memory_dim, raw_msg_dim, time_dim
        self.untouched = untouched
        if isinstance(aggregator, str):
            aggregator = LastAggregator() if aggregator == "last" else MeanAggregator()
        self.aggr_module = aggregator
        self.msg_s_module = message if message is not None else IdentityMessage(raw_msg_dim, memory_dim, time_dim)
        self.msg_d_module = copy.deepcopy(self.msg_s_module)
        width: int = self.msg_s_module.out_channels  # type: ignore[assignment]
        self.time_enc = TimeEncoder(time_dim)
        self.gru = nn.GRUCell(width, memory_dim)
        self.correction = correction
        self.moments = RunningMoments(num_nodes, memory_dim, dtype=dtype) if correction is not None else None
        self._only_last = type(aggregator) is LastAggregator
        self.slots_per_node = 1 if self._only_last else 2
        mailbox = LastMailbox if self._only_last else LogMailbox
        self.mailbox = mailbox(self.slots_per_node * num_nodes, raw_msg_dim, dtype=dtype)
        self.register_buffer("memory", torch.zeros(num_nodes, memory_dim, dtype=dtype))
        self.register_buffer("last_update", torch.zeros(num_nodes, dtype=torch.int64))
        self.to(device=device, dtype=dtype)

    def forward(self, n_id: Tensor) -> tuple[Tensor, Tensor]:
        """The memories of nodes, with what waits for them applied while training.

        Args:
            n_id: int64 `[n]`.

        Returns:
            memory `[n, memory_dim]` and last_update int64 `[n]`.

        Raises:
            ValueError: n_id is no int64 vector on the device of the state, or is out of range (CPU).
        """
        check_nodes("forward", self.num_nodes, self.memory, n_id=n_id)
        if not self.training:
            return self.memory.index_select(0, n_id), self.last_update[n_id]
        update = self.update_rows(n_id)
        return update.tables[0], update.last_update

    def update_state(
        self, src: Tensor, dst: Tensor, t: Tensor, raw_msg: Tensor, event_id: Tensor | None = None
    ) -> None:
        """Takes a batch of events.

        Args:
            src, dst, t: int64 `[E]`.
            raw_msg: `[E, raw_msg_dim]`, in the dtype of the state. No gradient is kept.
            event_id: int64 `[E]`, which decides between equal times; default: the place in the batch.

        Raises:
            ValueError: shapes, dtypes or devices that do not fit; on the CPU also nodes out of range and NaN in
                raw_msg. Nothing has been written then.

        Cost:
            One update of each node in the batch: for identical messages the GRU's products, and about ten rows read
            and written.
        """
        op = "update_state"
        check_nodes(op, self.num_nodes, self.memory, src=src, dst=dst)
        events = src.shape[0]
        check_like_nodes(op, self.memory, events, dst=dst, t=t, event_id=event_id)
        check_rows(op, self.memory, events, self.raw_msg_dim, raw_msg=raw_msg)
        check_no_nan(op, raw_msg=raw_msg)
        ids = torch.arange(events, device=src.device) if event_id is None else event_id
        roles = torch.zeros_like(src), torch.ones_like(src)
        words = torch.cat([torch.stack([o, t, ids, r], 1) for o, r in zip((dst, src), roles, strict=True)])
        nodes = torch.cat([src, dst])
        slots = nodes if self._only_last else 2 * nodes + torch.cat(roles)
        self.take(nodes, slots, words, raw_msg.detach())

    def update_rows(self, nodes: Tensor) -> Update:
        previous, since = self.memory.index_select(0, nodes), self.last_update[nodes]
        aggregate, newest, has = self._last(nodes, previous) if self._only_last else self._all(nodes, previous)
        measured = self.gru(aggregate, previous)
        memory = measured
        if self.correction is not None and self.moments is not None:
            memory = self.correction(self.moments.predict(nodes, previous), measured)
        tables = (memory,)
        if self.untouched == "keep":
            tables = (torch.where(has[:, None], memory, previous),)
            last_update = torch.where(has, torch.maximum(newest, since), since)
        else:
            last_update = torch.where(has, newest, 0)
        return Update(tables, last_update, has, measured - previous if self.moments is not None else None)

    def tables(self) -> tuple[Tensor, ...]:
        return (self.memory,)

    def record(self, nodes: Tensor, update: Update) -> None:
        if self.moments is not None and update.increments is not None:
            self.moments.update(torch.where(update.has_message, nodes, -1), update.increments)

    def reset_state(self) -> None:
        """Forgets all events: memories, times and moments become 0, nothing waits."""
        super().reset_state()
        if self.moments is not None:
            self.moments.reset()

    def reset_parameters(self) -> None:
        """Draws all layers that can be drawn again."""
        for module in (self.msg_s_module, self.msg_d_module, self.aggr_module, self.time_enc, self.gru):
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]

    def extra_repr(self) -> str:
        return f"num_nodes={self.num_nodes}, memory_dim={self.memory_dim}, untouched={self.untouched!r}"

    def _last(self, nodes: Tensor, previous: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The one message of each node, its time, and whether there is one."""
        mail = self.mailbox.read(nodes)
        has = mail.other >= 0
        t_enc = self.time_enc(mail.time - self.last_update[nodes])
        parts = previous, self.memory.index_select(0, mail.other.clamp_min(0)), mail.raw, t_enc
        message = self.msg_s_module(*parts)
        if any(True for _ in self.msg_d_module.parameters()):  # without parameters the two are one function
            message = torch.where(mail.role[:, None] == 1, self.msg_d_module(*parts), message)
        return torch.where(has[:, None], message, 0), mail.time, has

    def _all(self, nodes: Tensor, previous: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The aggregate of each node's messages, the newest of their times, and whether there are any."""
        messages, indices, times = [], [], []
        for role, module in enumerate((self.msg_s_module, self.msg_d_module)):
            mail = self.mailbox.read(2 * nodes + role)
            own = nodes[mail.query]
            t_enc = self.time_enc(mail.time - self.last_update[own])
            messages.append(module(*(self.memory.index_select(0, ids) for ids in (own, mail.other)), mail.raw, t_enc))
            indices.append(mail.query)
            times.append(mail.time)
        index, time = torch.cat(indices), torch.cat(times)
        aggregate = self.aggr_module(torch.cat(messages), index, time, nodes.shape[0])
        return aggregate, *newest_of(index, time, nodes.shape[0])
