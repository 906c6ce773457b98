"""Comparisons of many runs; `registry` has what runs each."""

# By the names that --mode gives them.
EXPERIMENTS = (
  "benchmark",
  "ablation",
  "world",
  "tune",
  "changing_catalogue",
  "catalogue_size",
  "ab",
  "off_policy",
  "conservatism",
  "closed_loop",
  "after_supervised",
  "results",
)
