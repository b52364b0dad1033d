"""`SignedMemory`: SEMBA's two memories of a node, for friends and for enemies."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from anabranch.core.arguments import check_same_device, dtype_name
from anabranch.temporal.event_memory import EventMemory, Update, newest_of
from anabranch.temporal.mailbox import LastMailbox, LogMailbox, Mail
from anabranch.temporal.messages import IdentityMessage, MeanAggregator, TimeEncoder
from anabranch.temporal.stream_state import check_like_nodes, check_no_nan, check_nodes, check_rows

_FRIEND, _ENEMY = 0, 1


class SignedMemory(EventMemory):
    """Two vectors for every node, written as balance theory has it (SEMBA, arXiv 2207.03408).

    The positive memory hears a friend's positive one and an enemy's negative one (the enemy of my enemy); the negative
    memory hears a friend's negative one and an enemy's positive one. Every event so gives each of its nodes a message
    for both, `[own; other's; raw; cos(w (t - last_update) + b)]`, and each memory has a GRU of its own. When messages
    are applied is said at EventMemory: while training, a batch late.

    Args:
        num_nodes, memory_dim, raw_msg_dim: sizes; memory_dim is that of each of the two.
        time_dim: of the encoding of time.
        aggregator: "last": the newest event of either sign, by (time, event id); "mean": of all in the latest batch.
        variant: "theory", or "release" for what the authors' code does: positive events never reach the negative
            memory, negative ones give it two messages, with the other's negative and with its positive memory, and
            messages are detached. Of its two equally late ones "last" takes the mean: the code leaves the winner open.
        untouched: "keep": a node without a message stays as it is; "update": it passes through the GRU with a message
            of zeros, and last_update becomes 0. With "release" a node that had positive events alone has none for its
            negative memory.
        device, dtype: of the state and the layers.

    State: `positive`, `negative` `[num_nodes, memory_dim]`, `last_update` int64 `[num_nodes]`, `mailbox` with a slot
    for each node and sign; in `state_dict`. Gradients reach the time encoder ("theory" alone) and the GRUs. With "last"
    no call waits for a GPU and `torch.compile(fullgraph=True)` takes forward and update_state.
    """

    positive: Tensor
    negative: Tensor

    def __init__(
        self,
        num_nodes: int,
        memory_dim: int,
        raw_msg_dim: int,
        *,
        time_dim: int = 100,
        aggregator: Literal["last", "mean"] = "last",
        variant: Literal["theory", "release"] = "theory",
        untouched: Literal["keep", "update"] = "keep",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        for name, given, known in (
            ("aggregator", aggregator, ("last", "mean")),
            ("variant", variant, ("theory", "release")),
            ("untouched", untouched, ("keep", "update")),
        ):
            if given not in known:
                raise ValueError(f"SignedMemory: {name} is {given!r}, must be one of {known}; choose one")
        self.num_nodes, self.memory_dim, self.raw_msg_dim, self.time_dim = num_nodes, memory_dim, raw_msg_dim, time_dim
        self.aggregator, self.variant, self.untouched = aggregator, variant, untouched
        self.message = IdentityMessage(raw_msg_dim, memory_dim, time_dim)
        self.mean = MeanAggregator()
        self.time_enc = TimeEncoder(time_dim)
        self.gru_positive = nn.GRUCell(self.message.out_channels, memory_dim)
        self.gru_negative = nn.GRUCell(self.message.out_channels, memory_dim)
        self.slots_per_node = 2
        mailbox = LastMailbox if aggregator == "last" else LogMailbox
        self.mailbox = mailbox(2 * num_nodes, raw_msg_dim, dtype=dtype)
        self.register_buffer("positive", torch.zeros(num_nodes, memory_dim, dtype=dtype))
        self.register_buffer("negative", torch.zeros(num_nodes, memory_dim, dtype=dtype))
        self.register_buffer("last_update", torch.zeros(num_nodes, dtype=torch.int64))
        self.to(device=device, dtype=dtype)

    def forward(self, n_id: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The memories of nodes, with what waits for them applied while training.

        Args:
            n_id: int64 `[n]`.

        Returns:
            positive and negative `[n, memory_dim]`, last_update int64 `[n]`.

        Raises:
            ValueError: n_id is no int64 vector on the device of the state, or is out of range (CPU).
        """
        check_nodes("forward", self.num_nodes, self.positive, n_id=n_id)
        if not self.training:
            return self.positive.index_select(0, n_id), self.negative.index_select(0, n_id), self.last_update[n_id]
        update = self.update_rows(n_id)
        positive, negative = update.tables
        return positive, negative, update.last_update

    def update_state(
        self,
        src: Tensor,
        dst: Tensor,
        t: Tensor,
        is_negative: Tensor,
        raw_msg: Tensor,
        event_id: Tensor | None = None,
    ) -> None:
        """Takes a batch of signed events.

        Args:
            src, dst, t: int64 `[E]`.
            is_negative: bool `[E]`, whether source and target are enemies.
            raw_msg: `[E, raw_msg_dim]`, in the dtype of the state. No gradient is kept.
            event_id: int64 `[E]`, which decides between equal times; default: the place in the batch.

        Raises:
            ValueError: shapes, dtypes or devices that do not fit; on the CPU also nodes out of range and NaN in
                raw_msg. Nothing has been written then.
        """
        op = "update_state"
        check_nodes(op, self.num_nodes, self.positive, src=src, dst=dst)
        events = src.shape[0]
        check_like_nodes(op, self.positive, events, dst=dst, t=t, event_id=event_id)
        check_same_device(op, "the state", self.positive, is_negative=is_negative)
        if is_negative.shape != (events,) or is_negative.dtype != torch.bool:
            raise ValueError(
                f"{op}: is_negative is {dtype_name(is_negative.dtype)} of shape {tuple(is_negative.shape)}, must be "
                f"bool of shape ({events},); give each event a sign"
            )
        check_rows(op, self.positive, events, self.raw_msg_dim, raw_msg=raw_msg)
        check_no_nan(op, raw_msg=raw_msg)
        ids = torch.arange(events, device=src.device) if event_id is None else event_id
        ends = ((dst, torch.zeros_like(src)), (src, torch.ones_like(src)))
        words = torch.cat([torch.stack([other, t, ids, role], 1) for other, role in ends])
        nodes = torch.cat([src, dst])
        self.take(nodes, 2 * nodes + is_negative.long().repeat(2), words, raw_msg.detach())

    def tables(self) -> tuple[Tensor, ...]:
        return self.positive, self.negative

    def update_rows(self, nodes: Tensor) -> Update:
        own = self.positive.index_select(0, nodes), self.negative.index_select(0, nodes)
        aggregates, newest, has, reached = self._last(nodes) if self.aggregator == "last" else self._all(nodes)
        since = self.last_update[nodes]
        tables = []
        for gru, aggregate, previous, is_reached in zip(
            (self.gru_positive, self.gru_negative), aggregates, own, reached, strict=True
        ):
            memory = gru(aggregate.detach() if self.variant == "release" else aggregate, previous)
            tables.append(torch.where(is_reached[:, None], memory, previous) if self.untouched == "keep" else memory)
        if self.untouched == "keep":
            return Update(tuple(tables), torch.where(has, torch.maximum(newest, since), since), has)
        return Update(tuple(tables), torch.where(has, newest, 0), has)

    def extra_repr(self) -> str:
        return (
            f"num_nodes={self.num_nodes}, memory_dim={self.memory_dim}, aggregator={self.aggregator!r}, "
            f"variant={self.variant!r}, untouched={self.untouched!r}"
        )

    def _message(self, nodes: Tensor, mail: Mail, own: Tensor, others: Tensor) -> Tensor:
        encoding = self.time_enc(mail.time - self.last_update[nodes])
        return self.message(own, others, mail.raw, encoding)

    def _last(self, nodes: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Messages for both memories, their time, and whether there are any: in all, and for each memory."""
        by_sign = [self.mailbox.read(2 * nodes + sign) for sign in (_FRIEND, _ENEMY)]
        friend, enemy = by_sign
        later = (enemy.time > friend.time) | ((enemy.time == friend.time) & (enemy.event_id >= friend.event_id))
        hostile = (enemy.other >= 0) & ((friend.other < 0) | later)
        chosen = (hostile, hostile, hostile, hostile, hostile, hostile[:, None])
        mail = Mail(*(torch.where(c, b, a) for c, a, b in zip(chosen, friend, enemy, strict=True)))
        has = mail.other >= 0
        mine, other = (
            (self.positive.index_select(0, nodes), self.negative.index_select(0, nodes)),
            mail.other.clamp_min(0),
        )
        theirs = self.positive.index_select(0, other), self.negative.index_select(0, other)
        heard = (torch.where(hostile[:, None], theirs[1], theirs[0]), torch.where(hostile[:, None], *theirs))
        positive = self._message(nodes, mail, mine[0], heard[0])
        reached = has, has
        if self.variant == "theory":
            negative = self._message(nodes, mail, mine[1], heard[1])
        else:
            enemies = enemy.other.clamp_min(0)
            both = (self.negative.index_select(0, enemies) + self.positive.index_select(0, enemies)) / 2
            negative = self._message(nodes, enemy, mine[1], both)
            reached = has, enemy.other >= 0
        zero = torch.zeros((), dtype=positive.dtype, device=positive.device)
        aggregates = (
            torch.where(reached[0][:, None], positive, zero),
            torch.where(reached[1][:, None], negative, zero),
        )
        return aggregates, mail.time, has, reached

    def _all(self, nodes: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor, tuple[Tensor, Tensor]]:
        by_sign = [self.mailbox.read(2 * nodes + sign) for sign in (_FRIEND, _ENEMY)]
        tables = self.positive, self.negative
        # For each memory: of which mail, with which memory of the other.
        heard = (((_FRIEND, 0), (_ENEMY, 1)), ((_FRIEND, 1), (_ENEMY, 0)))
        if self.variant == "release":
            heard = (heard[0], ((_ENEMY, 1), (_ENEMY, 0)))
        aggregates, reached = [], []
        for own, sources in enumerate(heard):
            messages, indices = [], []
            for sign, table in sources:
                mail = by_sign[sign]
                at = nodes[mail.query]
                messages.append(
                    self._message(at, mail, tables[own].index_select(0, at), tables[table].index_select(0, mail.other))
                )
                indices.append(mail.query)
            index = torch.cat(indices)
            aggregates.append(self.mean(torch.cat(messages), index, index, nodes.shape[0]))
            reached.append(newest_of(index, index, nodes.shape[0])[1])
        index, time = (torch.cat([getattr(mail, name) for mail in by_sign]) for name in ("query", "time"))
        newest, has = newest_of(index, time, nodes.shape[0])
        return (aggregates[0], aggregates[1]), newest, has, (reached[0], reached[1])
