//! Opus and the containers. Pure.
