"""`layertap inspect` and `layertap view`: show a shard, a sample or a run to a person.

`shard` reads it, `decoding` turns token ids into text, and `facts` computes what to show. `page`
shows the facts in a terminal, `document` writes them as JSON, and `html` writes a page for the
browser. A program should read with `layertap.ActivationDataset` instead.
"""
