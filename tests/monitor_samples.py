"""What a monitor could have found, with everything that its page shows."""

from __future__ import annotations

from pat.monitor import history
from pat.monitor.page import page
from pat.monitor.result import OUTPUTS, PROMPTS, REPLAY, Asked, Check, Monitored, Replayed, judged
from pat.report.page import Page
from pat.statistics.drift import Drift

RUNS = 12


def monitored(time_s: float, evil: str) -> Monitored:
    """With alerts; what logs and models could hold ends in `evil`."""
    shares = {f"films{evil}": (0.6, 0.2), "law": (0.3, 0.4), "none": (0.1, 0.4)}
    checks = [
        Check(PROMPTS, "tokens", Drift(0.31, 1e-9, "Kolmogorov-Smirnov"), {"median": (27, 34), "95 %": (80, 191)}),
        Check(PROMPTS, f"slices of domain{evil}", Drift(0.4, 1e-5, "chi-square"), shares, share=True),
        Check(PROMPTS, "embeddings", Drift(0.05, 0.4, "MMD, permutations")),
        Check(OUTPUTS, f"latency_ms{evil}", Drift(0.1, 0.2, "Kolmogorov-Smirnov"), {"median": (20.1, 20.7)}),
        Check(REPLAY, "right answers", Drift(0.1, 1e-4, "McNemar, exact"), {"share": (0.9, 0.8)}, share=True),
    ]
    texts = (f"What is this?{evil}", ("domain=films",), f"praise{evil}", f"blame{evil}")
    worst = [Asked(f"a{i}{evil}", *texts, "not praise" if i else "", bool(i), 0.4) for i in (1, 0)]
    replayed = Replayed(f"dense{evil}", 32, 30, 0.8, 0.1, 3, worst)
    return Monitored(
        time_s, f"prod.jsonl{evil}", f"reviews/2{evil}", f"mix reviews{evil}", "older.jsonl", "prod.jsonl", 1234, 0.01,
        judged(checks, 0.01), replayed, [f"prod.jsonl{evil}, line 9 is not whole"],
    )  # fmt: skip


def rolling(evil: str = "") -> Page:
    """The page after RUNS runs."""
    runs = []
    for day in range(RUNS):
        found = monitored(1795744053.0 + 86400 * day, evil)
        runs = history.added(runs, found, keep=30)
    return page(found, runs, worst=3)
