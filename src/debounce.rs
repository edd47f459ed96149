//! What is looked at again and again, and may be caught in the middle of a change.

/// Takes what was seen twice in a row: a file that is being written has half a content, and of two
/// files one is there before the other.
pub struct Debounce<T> {
    taken: Option<T>,
    last: Option<T>,
}

impl<T: PartialEq + Clone> Debounce<T> {
    /// `taken` is what is known already.
    pub fn new(taken: Option<T>) -> Self {
        Self { taken, last: None }
    }

    /// Whether this is to be taken: the same as at the last look, and not what was taken last.
    pub fn settles(&mut self, seen: &T) -> bool {
        let is_steady = self.last.as_ref() == Some(seen);
        self.last = Some(seen.clone());
        let is_new = is_steady && self.taken.as_ref() != Some(seen);
        if is_new {
            self.taken = self.last.clone();
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_is_taken_once() {
        let mut debounce = Debounce::new(Some('a'));
        let looks = "aabcccbbaba".chars();
        let taken: String = looks.filter(|seen| debounce.settles(seen)).collect();
        assert_eq!(taken, "cb");
        assert!(!Debounce::new(None).settles(&'a'), "seen only once");
    }
}
