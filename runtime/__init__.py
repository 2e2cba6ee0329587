"""From a plan to images: schedules, samplers, token loops and the pipeline."""
