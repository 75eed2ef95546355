"""`layertap view`: a run, its samples and its grids as one page of HTML.

`codes`: numbers in two bytes, exact in the digits shown; `figures`: what is said of each token;
`payload`: a sample as the page unpacks it; `run`: what is said of the whole run; `write`: the file.
Of features: `interest`, which are worth a look; `features`, a list of all; `tops`, where the drawn
ones are largest; `features_part`, all of that in the room that it has.
The page itself is in `assets`, plain JavaScript without a framework: it draws a few hundred cells
and tokens, which needs none.
"""
