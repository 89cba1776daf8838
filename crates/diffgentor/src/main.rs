//! diffgentor
fn main(){}
