//! For tests, benches and the demo: servers, publishers, impairment, simulation.
