//! The account's password, and its keys, which are made of it and of its name (spec 4.8).

use bytes::Bytes;
use zeroize::Zeroizing;

use super::super::event::Event;
use super::{Act, Acts, Lock, Talk, Work};
use crate::chat::skynet::wire::blob::AccountKeys;
use crate::chat::skynet::wire::{ChannelType, Content, MessageFlags};

impl Talk {
    /// Whether the account's password is the one that is known here.
    pub(super) fn is_current(&self) -> bool {
        self.book.key_hash() == Some(&self.keys.key_hash)
    }

    /// There is another password. If it is one that can be known here, it is.
    pub(super) fn password_changed(&mut self) {
        if self.replaying {
            return;
        }
        if !self.is_current() {
            // The same password under another name, as another device did it.
            let name = self.address().to_owned();
            let lock = Lock { keys: AccountKeys::derive(&name, &self.password), name };
            if self.book.key_hash() == Some(&lock.keys.key_hash) {
                self.adopt(lock);
            }
        }
        if !self.fresh {
            let known = self.book.is_unlocked();
            self.tell(Event::Password { known });
        }
    }

    /// These are the keys from now on.
    pub(super) fn adopt(&mut self, lock: Lock) {
        (self.name, self.keys) = (lock.name.clone(), lock.keys.clone());
        self.acts.push(Act::Seal(vec![lock.clone()]));
        let read = self.book.learn_password(lock.keys);
        self.tell_all(read, None);
    }

    pub(super) fn seal_with_own(&mut self) {
        let lock = Lock { name: self.name.clone(), keys: self.keys.clone() };
        self.acts.push(Act::Seal(vec![lock]));
    }

    /// The password was changed on another device, and is this.
    pub(in crate::tools::skynet) fn unlock(&mut self, password: Zeroizing<String>) -> Acts {
        let name = self.address().to_owned();
        let lock = Lock { keys: AccountKeys::derive(&name, &password), name };
        if self.book.key_hash() == Some(&lock.keys.key_hash) {
            self.password = password;
            self.adopt(lock);
            self.tell(Event::Password { known: true });
            self.keep_up();
        } else {
            self.problem("that is not the account's password");
        }
        self.take_acts()
    }

    /// Changes the password.
    pub(in crate::tools::skynet) fn change_password(&mut self, password: Zeroizing<String>) -> Acts {
        self.update_password(password, true);
        self.take_acts()
    }

    pub(super) fn update_password(&mut self, password: Zeroizing<String>, asked: bool) {
        let Some(loopback) = self.book.own(ChannelType::Loopback).filter(|_| self.is_current()) else {
            return self.problem("the password that is valid now is not known here");
        };
        let name = self.address().to_owned();
        let lock = Lock { keys: AccountKeys::derive(&name, &password), name };
        let content = Content::PasswordUpdate {
            previous_key_hash: self.keys.key_hash.clone(),
            key_hash: lock.keys.key_hash.clone(),
            key_history: Bytes::from(lock.keys.account_key.seal(self.keys.account_key.0.expose())),
        };
        // Whichever of the two the server has in the end opens what is kept.
        let own = Lock { name: self.name.clone(), keys: self.keys.clone() };
        self.acts.push(Act::Seal(vec![own, lock.clone()]));
        let read = self.book.learn_password(lock.keys.clone());
        self.tell_all(read, None);
        if let Some(temp) =
            self.say(loopback, MessageFlags::LOOPBACK.and(MessageFlags::UNENCRYPTED), &content, None, &[])
        {
            self.work = Some(Work::Password { temp, lock, password, asked });
        }
    }
}
