"""Every limit and period of the agent that operators do not set."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Limits of the agent. Counts are of one process, whatever the number of its hosts."""

    # commands
    tombstones_max: int = 20_000  # records of instances that are not granted to a host of ours
    tombstone_s_min: int = 3_600  # beyond the limit the oldest ended record goes when it is older than this
    steps_max: int = 32  # steps remembered of one instance under one command generation
    waiting_max: int = 2_000  # commands that wait for a worker
    busy_retry_ms: int = 500  # what a refused sender is told

    # outbox
    observations_max: int = 20_000  # instances with an unacknowledged observation = grants at most
    results_max: int = 20_000  # unacknowledged step results, those of commands under way included
    compact_bytes_min: int = 1 << 20  # a journal below this size is never rewritten
    journal_retry_ms: int = 1_000  # between two tries to get a failed journal back
    journal_log_ms: int = 60_000  # between two log lines that say a journal is failing

    # reports
    frame_reports_max: int = 256  # reports a frame
    straggler_ms: int = 200  # a frame unanswered for so long does not hold back the next
    answer_ms_max: int = 5_000  # a report without a verdict for so long is sent again
    answer_again_ms_max: int = 60_000  # that doubles up to this: a slow lane is not asked to do the same many times
    not_yet_ms: int = 1_000  # between two sends of a report whose grant is not there yet
    invalid_times_max: int = 5  # a report called invalid is tried so often: its link may not have been attached yet
    refused_ms_min: int = 10  # back-off of a report called not_owner or invalid, doubled up to the maximum
    refused_ms_max: int = 1_000
    busy_ms_min: int = 100  # a lane that said busy rests so long, when it does not say how long
    busy_ms_max: int = 2_000  # that doubles up to this while it says busy

    # links
    conductors_max: int = 16
    call_ms: int = 5_000  # map_get and attach
    begin_ms: int = 10_000  # host.begin: one commit at the owner
    grants_pause_ms: int = 20  # between two pages of a host's grants
    unknown_retry_ms_min: int = 5_000  # between two questions after domains that nobody granted, doubled
    unknown_retry_ms_max: int = 300_000
    doubt_ms: int = 5_000  # commands wait so long after records were lost: no older one is on its way then
    retry_ms_min: int = 50  # back-off of begin and attach, doubled up to the maximum
    retry_ms_max: int = 1_000
    relay_after_ms: int = 1_000  # an owner without a link for so long is reached over another conductor
    relay_rest_ms: int = 2_000  # a relay that refused is asked last for so long
    beat_relays_max: int = 2  # relays that hand on one beat: nobody says whether a beat has come

    # observing
    observe_ms: int = 10_000  # between two comparisons of domains with what was reported

    # stop
    stop_ms: int = 2_000  # work under way may end within this
