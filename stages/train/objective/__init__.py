"""The loss of one step and its backward: noise, solvers, rollouts; no optimizer."""
