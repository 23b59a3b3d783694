"""Every limit of the bus, with its name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of one endpoint; the defaults are the protocol's."""

    # Frames
    frame_bytes_max: int = 4 * 1024 * 1024  # larger ones are refused by libzmq (ZMQ_MAXMSGSIZE) and by us
    payload_bytes_max: int = 3 * 1024 * 1024  # with a full batch beside it a frame stays under its limit
    frame_envelopes_max: int = 256  # accepted in one frame
    batch_envelopes: int = 64  # sent in one frame; 64 beats 512, the two sides overlap instead of taking turns
    batch_bytes: int = 256 * 1024  # a frame is closed by the envelope that takes it to this much
    hello_bytes_max: int = 64 * 1024  # of any frame on a route that has not said hello
    attributes_bytes_max: int = 16 * 1024

    # Queues of a link
    queue_envelopes_max: int = 10_000  # outgoing calls, casts, replies; each class may fill its part (QUEUE_PARTS)
    queue_bytes_max: int = 64 * 1024 * 1024
    queue_control_max: int = 10_000  # outgoing acks, credits and naks; more resets the link: its peer does not read
    open_calls_max: int = 10_000  # calls of ours waiting for an answer
    serving_calls_max: int = 4_000  # calls of the peer being worked on or queued, by class as above: reads leave room
    # for calls, calls for control
    state_events_max: int = 20_000  # distinct (topic, key) waiting; more resets the link, which then gets a snapshot
    held_frames_hwm: int = 64  # ZMQ_SNDHWM and ZMQ_RCVHWM, frames per peer
    held_bytes_max: int = 256 * 1024  # ZMQ_SNDBUF: in the kernel, where control overtakes nothing
    io_beside_share_max: float = 0.5  # of a processor: while its own work is less, libzmq's I/O thread runs where the
    # loop runs; 0: where the kernel puts it (docs/decisions/0006)
    io_beside_peers_max: int = 64  # with more, it runs where the kernel puts it
    io_beside_refusals_max: int = 100  # in a second: with more, too, since somebody floods the others
    inbox_max: int = 20_000  # reports and acks that arrived and were not handled; more resets the link

    # Reports
    report_credit: int = 1_000  # reports that a peer may have here without a durable ack
    report_batch: int = 64  # reports of one envelope
    unacked_reports_max: int = 10_000  # kept for resending
    lane_credit: int = 0  # of them, of one lane here; 0: there are no lanes. At most report_credit / (2 * lanes), so
    # that all lanes together leave half of the credit, which is what keys of unknown lane may hold at a sender
    lane_keys_max: int = 20_000  # keys whose lane a sender remembers
    acks_per_envelope_max: int = 1_024

    # Streams
    streams_max: int = 1_024  # published by an endpoint, followed at a peer, and followed by a peer
    stream_events_max: int = 10_000  # kept by a publisher, of one stream, unless told otherwise
    stream_bytes_max: int = 16 * 1024 * 1024
    stream_event_bytes_max: int = 64 * 1024
    stream_batch: int = 64  # events of one envelope
    stream_credit: int = 256  # events of a stream that may wait at a follower
    stream_probe_ms: int = 5_000  # a follower asks again, or tells again what it has, after this

    # Workers
    control_workers: int = 32
    leaf_workers: int = 64
    calls_workers: int = 256
    reads_workers: int = 64
    link_workers: int = 64  # greenlets that run on_reports, on_acks, on_event, on_link_up and on_link_down
    admit_workers: int = 64
    pool_queue_max: int = 10_000  # jobs waiting in one pool; more are answered Busy
    job_run_max: int = 32  # jobs that a worker takes before it lets the hub go on
    read_ahead_jobs: int = 512  # more jobs than this that only wait for the hub, and sockets are read no further

    # Times
    call_timeout_ms_max: int = 3_600_000
    heartbeat_interval_ms: int = 1_050  # a dialler that heard or said nothing for so long asks, and is answered: just
    # above a second, so that who reports once a second asks nothing
    late_answer_ms: int = 300  # a dialler that waits longer looks whether the listener's process runs at all
    silence_ms_max: int = 1_900  # a peer silent for so long is given up: with a tick's delay within 2 s
    forsaken_ms_max: int = 10_000  # a listener ends a connection on which nothing came for so long
    hello_timeout_ms: int = 5_000
    hello_backoff_ms_min: int = 50
    hello_backoff_ms_max: int = 1_000
    reconnect_ms_min: int = 50
    reconnect_ms_max: int = 1_000
    handshake_timeout_ms: int = 5_000
    tick_ms: int = 25  # deadline sweep
    events_reread_ms: int = 75  # a missed edge of ZMQ_FD stalls no longer than this
    call_grace_ms: int = 1_000  # open idempotent calls wait so long for a lost link to come back
    retransmit_ms: int = 1_000  # reports not known as received are sent again after this
    received_ack_ms: int = 500  # received reports are confirmed at the latest after this; most durable acks come before
    session_retention_ms: int = 30_000  # a listener remembers the unacknowledged reports of a lost peer so long
    refusal_notice_ms: int = 250  # at most one hello_required per route in this time
    retry_after_ms: int = 100  # what Busy tells

    # Peers
    routes_max: int = 20_000
    links_per_key_max: int = 64
    names_chars_max: int = 255
    hosts_max: int = 1_000
    unknown_keys_burst: int = 50  # refusals of unknown keys that leave at once; then
    unknown_keys_per_s: int = 100  # so many a second, while known keys are answered at once
    unknown_keys_held_max: int = 300  # handshakes held back by that; more are refused at once. Below 5 s in all
    offences_burst: int = 200  # frames that cannot be taken, of one key; then
    offences_per_s: int = 20  # so many a second; beyond, its connection is ended and the key is barred
    bar_ms: int = 10_000  # for so long: hellos are answered Busy, connections that send more are ended
    frames_per_turn: int = 32  # read from one socket before others get their turn
    paced_routes_per_tick: int = 40  # so many peers heard within a tick, and a listener's socket is read at a pace:
    paced_read_ms: int = 5  # once in this time, until less than half as many are heard
