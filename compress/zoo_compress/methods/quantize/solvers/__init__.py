"""Which codes stand for a weight: solvers, each a function of a weight, a grid and what calibration saw."""
