"""Create, watch, repair and delete a fleet of TPUs in Google Cloud.

`fleet` defines a fleet, `decision` decides what to do (a pure function), `cloud` does it through
Google's client, and `drive` runs the loop: look, decide, act. It is a separate room because it
needs nothing from extraction: it runs on a laptop, without JAX, and knows neither datasets nor
shards.
"""
