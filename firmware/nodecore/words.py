"""What do the numbers in messages and events mean, in words?

Apart from wire.py, because a node needs only the numbers, and its heap is small.
"""

# Why a badge was refused. Never renumber: the numbers lie in journals.
REASONS = {
    0: "none",
    1: "unknown_badge",
    2: "no_training",
    3: "training_expired",
    4: "member_held",
    5: "journal_full",
    6: "machine_stopped",
    7: "meter_silent",
    8: "no_roster",
    9: "clock_unknown",
    10: "flash_fault",
}

# Why a session ended. `power_lost` is never written by a node: the host's fold says it of a session that a boot cut off.
ENDS = {
    1: "badge_removed",
    2: "stop_pressed",
    3: "estop_opened",
    4: "meter_silent",
    5: "power_lost",
    6: "flash_fault",
    7: "program_fault",
    8: "idle",
}

# Why the node started, as machine.reset_cause() tells it, in numbers that every port shares.
CAUSES = {0: "unknown", 1: "power_on", 2: "hard_reset", 3: "watchdog", 4: "soft_reset"}

# What came of a command.
RESULTS = {0: "ok", 1: "stale", 2: "bad_order", 3: "bad_digest", 4: "flash_fault"}

# What broke.
FAULTS = {1: "program", 3: "meter", 4: "reader", 5: "relay_cut_by_timer"}
