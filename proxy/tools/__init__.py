"""Commands that run beside a proxy, or instead of one: probes, checks, the trial run."""
