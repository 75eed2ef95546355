"""`python -m benchmarks.accelerator --out DIR`: what matters most about a card that you have for
minutes.

A lent card has limited time and no network, and the first run of anything on it fails somewhere. So
every part is a separate process with its own time limit. torch and JAX do not compete for memory, a
crash or a hang costs one case, and the next process continues after it. Each figure is a line of
JSON in DIR/results.jsonl, on the disk before the next case begins. DIR/report.md is written again
for each figure. DIR/log.txt has the output of libraries. The most important parts come first, and a
part leaves the rest of its time to the next.

`--platform cpu` is the rehearsal: the same code on tiny models. Its figures mean nothing.
"""
