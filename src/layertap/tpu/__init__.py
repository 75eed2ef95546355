"""A fleet of TPUs in Google Cloud: made, watched, mended and taken down.

`fleet` says what a fleet is, `decision` what to do (a pure function), `cloud` does it through
Google's client, and `drive` goes round: look, decide, act. It is a room of its own because it needs
nothing of extraction: it runs on a laptop, without JAX, and knows neither datasets nor shards.
"""
