"""Cloud TPU slices: gcloud argument lists and the scripts that workers run.

Standard library only, so that these modules work on a laptop without jax or this package installed.
"""
