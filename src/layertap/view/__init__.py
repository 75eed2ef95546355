"""`layertap inspect`: a shard, or one sample of it, for the eyes of a person.

`shard`: what is read of it; `decoding`: its token ids as text; `facts`: what is said of it, which
`page` shows and `document` writes as JSON. It knows `store`, which has the shard, and `prompts`,
which has the tokenizer. A program reads with `layertap.ActivationDataset` instead.
"""
