//! Every kernel against its twin in plain burn, and the properties that parallel runs rely on.

mod bits;
mod equal;
mod path;
mod shapes;
mod support;
