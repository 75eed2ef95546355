"""`python -m benchmarks.accelerator --out DIR`: what is worth knowing of a card that is there for
minutes.

A lent card has a clock and no network, and the first run of anything on it fails somewhere. So
every part is a process of its own with a limit of its own: torch and JAX do not fight for memory, a
crash or a hang costs one case, and the process that follows goes on behind it. Each figure is a
line of JSON in DIR/results.jsonl, on the disk before the next case begins; DIR/report.md is written
anew whenever one is there; DIR/log.txt has what libraries printed. Parts come in the order of what
is most worth knowing, and what one of them leaves of its time goes to the next.

`--platform cpu` is the rehearsal: the same code on tiny models. Its figures mean nothing.
"""
