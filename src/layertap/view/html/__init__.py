"""`layertap view`: a run, its samples and its grids as one page of HTML.

`codes` stores numbers in two bytes, exact in the digits shown. `figures` computes the values of
each token, `payload` packs a sample, `run` describes the whole run, and `write` writes the file.
For features, `interest` finds which are worth a look, `features` lists all, `tops` shows where the
drawn ones are largest, and `features_part` fits all of that into the space it has.

The page itself is in `assets`. It is plain JavaScript without a framework: it draws a few hundred
cells and tokens, which needs none.
"""
