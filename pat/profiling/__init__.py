"""How long models take, how much memory they hold, and what that costs: `pat profile`.

plan.py      the work and its order; measure.py gives it to all models in turn
worker.py    one model in a process of its own; backends/: what runs it there, one file each
vllm.py      the same through vLLM's server and benchmark client
figures.py   from times to figures and ratios; report.py shows them; operations.py counts FLOPs
table.py     seconds of a layer by its width: what the latency budget reads
"""
