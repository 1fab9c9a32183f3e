"""How much energy has gone through the meter?

Exact integers: power in milliwatts times milliseconds is added up, and every 3,600,000 of it is carried into one
milliwatt-hour. Nothing is rounded, so nothing drifts. The total counts from the node's boot, which is its epoch.
"""

MW_MS_PER_MWH = 3600000


class Energy:
    """A running total, `energy_mwh_total`, with the remainder kept exactly."""

    def __init__(self):
        self.energy_mwh_total = 0
        self._rest_mw_ms = 0

    def add(self, power_mw, duration_ms):
        """Count `power_mw` for `duration_ms`; neither may be negative. Called per reading, not per sample."""
        if power_mw < 0 or duration_ms < 0:
            raise ValueError("power %d mW for %d ms" % (power_mw, duration_ms))
        self._rest_mw_ms += power_mw * duration_ms
        self.energy_mwh_total += self._rest_mw_ms // MW_MS_PER_MWH
        self._rest_mw_ms %= MW_MS_PER_MWH
