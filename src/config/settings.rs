//! How keys are described: once, and everything else walks over the description.
//!
//! `settings!` takes a struct's fields with their meaning, type, default, kind and whether a running server can take over a
//! change. It makes the struct, its `Default`, and one method, [`Section::walk`], which shows every key to a [`Visitor`]
//! together with two values of it. Reading, the reference page, `config show` and reloading are visitors.
//!
//! *Rejected: deriving `Deserialize`*, which knows nothing of defaults, ranges, meanings and reloading when the page is
//! written, and ends at the first mistake; *a crate that merges sources* before they are checked, because after that nobody
//! knows on which line a value stood.

use super::kinds::Kind;

/// Whether a running server can take over a changed value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It can.
    Reload,
    /// Only the next start can.
    Restart,
}

/// One key, as it is described.
#[derive(Debug)]
pub struct Key<'a, T> {
    /// As in a file, sections included: `limits.idle_timeout`.
    pub path: &'a str,
    /// The meaning, line by line.
    pub about: &'a [&'a str],
    /// What values it takes and how they are written.
    pub kind: &'a dyn Kind<T>,
    /// Whether a running server can take over a changed value.
    pub change: Change,
}

/// Is shown every key.
pub trait Visitor {
    /// A section begins; the root's path is empty.
    fn section(&mut self, path: &str, about: &[&str]);
    /// A key of the section that began last, with two values of it.
    fn key<T: Clone + PartialEq>(&mut self, key: &Key<'_, T>, mine: &mut T, other: &T);
}

/// What `settings!` makes.
pub trait Section: Clone + Default {
    /// Shows every key below `path` to `visitor`: those of this section first, then section by section.
    fn walk(&mut self, other: &Self, path: &str, visitor: &mut impl Visitor);
}

/// The path of something in a section.
pub(super) fn below(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// Describes sections of the configuration; see the top of [`super`] for how a key is added.
macro_rules! settings {
    ($(
        $(#[doc = $about:literal])*
        $vis:vis struct $name:ident {
            keys {$(
                $(#[doc = $doc:literal])*
                $key:ident: $type:ty = $default:expr, $kind:expr, $change:ident;
            )*}
            $(sections { $($section:ident: $inner:ty,)* })?
        }
    )*) => {$(
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        $vis struct $name {
            $($(#[doc = $doc])* pub $key: $type,)*
            $($(#[doc = concat!("Section `", stringify!($section), "`.")] pub $section: $inner,)*)?
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)* $($($section: Default::default(),)*)? }
            }
        }

        impl $crate::config::settings::Section for $name {
            fn walk(&mut self, other: &Self, path: &str, visitor: &mut impl $crate::config::settings::Visitor) {
                use $crate::config::settings;
                visitor.section(path, &[$($about),*]);
                $({
                    let (path, about) = (settings::below(path, stringify!($key)), [$($doc),*]);
                    let change = settings::Change::$change;
                    let key = settings::Key { path: &path, about: &about, kind: &$kind, change };
                    visitor.key(&key, &mut self.$key, &other.$key);
                })*
                $($(self.$section.walk(&other.$section, &settings::below(path, stringify!($section)), visitor);)*)?
            }
        }
    )*};
}

/// A key's value that is one of a few words: the words, what they mean, and how they are written.
macro_rules! words {
    (
        $(#[doc = $about:literal])*
        $vis:vis enum $name:ident { $($(#[doc = $doc:literal])* $variant:ident = $word:literal,)* }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis enum $name { $($(#[doc = $doc])* $variant,)* }

        impl $crate::config::kinds::Words for $name {
            const WORDS: &'static [(&'static str, Self, &'static str)] =
                &[$(($word, Self::$variant, concat!($($doc),*)),)*];
        }
    };
}

pub(super) use {settings, words};
