//! dg-bench
fn main(){}
