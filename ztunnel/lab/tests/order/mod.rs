//! Orders in which things are started.

/// The `number`-th order of five things; each of the 120 comes once in so many numbers.
pub fn order(mut number: usize) -> [usize; 5] {
    let mut left = vec![0, 1, 2, 3, 4];
    std::array::from_fn(|_| {
        let index = number % left.len();
        number /= left.len();
        left.remove(index)
    })
}
