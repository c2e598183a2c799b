//! Gains, layouts and the limiter. Pure.
