//! From settled stretches to PCM on the timeline. Pure.
