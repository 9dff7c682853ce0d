"""What a run watches and what finds a fault: monitors, the sync probe, log-prob agreement, the search for a mismatch."""
