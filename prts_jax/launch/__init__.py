"""Cloud TPU slices from a laptop: gcloud argument lists and the scripts that workers run.

The standard library only: these modules work where neither jax nor this package is installed.
"""
