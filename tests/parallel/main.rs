//! Ranks that share a picture, against one rank.
