"""A draft becomes a batch: registers, birth and link, as they follow from the tip (P-BAT-3, P-BAT-4)."""

import hashlib
from dataclasses import replace

from edge_agent.chain_tip import ChainTip
from edge_agent.draft import Draft
from maxgreen.protocol.attestation import Attestation, attest
from maxgreen.protocol.batch import Batch, Birth, Channel, Event, EventKind, Health, Work, encode_birth
from maxgreen.protocol.keys import Signer
from maxgreen.verify.meter import MeterState, Sample, advance


def build(
    draft: Draft,
    tip: ChainTip,
    birth: Birth,
    *,
    work: Work | None,
    health: Health | None,
    predecessor: tuple[bytes, bytes] | None,
) -> tuple[Batch, ChainTip]:
    """Return the batch that follows `tip`, without attestations, and the tip after it, whose head is still empty."""
    tip = tip.entered(draft.boot)
    by_channel: dict[int, list[Sample]] = {}
    for tick in draft.ticks:
        for number, sample in tick.samples.items():
            by_channel.setdefault(number, []).append(sample)
    begins = [samples[0].boot_ms for samples in by_channel.values()]
    t0_boot_ms = min(begins) if begins else min(happening.boot_ms for happening in draft.happenings)
    offset_ms = draft.wall_offset_ms
    meters, channels = dict(tip.meters), []
    for sensor in sorted(birth.sensors, key=lambda sensor: sensor.channel):
        samples = by_channel.get(sensor.channel)
        if not samples:
            continue
        meter = meters[sensor.channel] = advance(
            meters.get(sensor.channel, MeterState()),
            samples,
            interval_ms=draft.interval_ms,
            dead_band_ua=sensor.dead_band_ua,
        )
        channels.append(
            Channel.of(
                sensor.channel,
                sensor.role,
                [sample.voltage_uv for sample in samples],
                [sample.current_ua for sample in samples],
                [sample.boot_ms - t0_boot_ms for sample in samples],
                (meter.register_mws, meter.reverse_mws, meter.gap_ms),
            )
        )
    birth_digest = hashlib.sha256(encode_birth(birth)).digest()
    batch = Batch(
        seq=tip.next_seq,
        prev=tip.head,
        boot=tip.boot,
        t0_ms=0 if offset_ms is None else t0_boot_ms + offset_ms,
        t0_boot_ms=t0_boot_ms,
        synchronised=offset_ms is not None,
        clock_error_ms=draft.ticks[0].clock_error_ms if draft.ticks else None,
        interval_ms=draft.interval_ms,
        channels=tuple(channels),
        work=work,
        health=health,
        events=tuple(Event(int(h.kind), h.boot_ms - t0_boot_ms, h.command, h.refusal) for h in draft.happenings),
        birth=birth if draft.stating_birth or birth_digest != tip.birth else None,
        succeeds=predecessor if tip.next_seq == 0 else None,
    )
    kinds = {happening.kind for happening in draft.happenings}
    # lines are open when every channel was attested: a start without a date, or of a part of them, opens none
    opening = draft.attesting and batch.synchronised and len(channels) == len(birth.sensors)
    after = replace(
        tip,
        next_seq=tip.next_seq + 1,
        head=b"",
        birth=birth_digest,
        opened=tip.opened or (opening and EventKind.TRANSFER_START in kinds),
        closed=EventKind.LAST_OF_KEY in kinds,
        meters=meters,
    )
    return batch, after


def attested(batch: Batch, signer: Signer, network: str) -> Batch:
    """Return the batch with an attestation of every channel in it (P-ATT-1); one without a date has none."""
    if not batch.synchronised:
        return batch
    attestations: tuple[Attestation, ...] = tuple(
        attest(
            signer,
            network,
            channel.number,
            (batch.t0_ms + channel.last_offset_ms) // 1000,
            channel.register_mws,
            batch.seq,
        )
        for channel in batch.channels
    )
    return replace(batch, attestations=attestations)
