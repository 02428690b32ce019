//! What a server, a contact or a member that means no good can do with what a device knows: nothing.

use super::*;
use crate::chat::skynet::wire::content::{ExternalFile, ImageShape, KeyFormat, MessageType};
use crate::chat::skynet::wire::{FileId, Keys};

const ME: AccountId = AccountId(1);
const BOB: AccountId = AccountId(2);
const CAROL: AccountId = AccountId(3);
const LOOPBACK: ChannelId = ChannelId(10);
const MY_DATA: ChannelId = ChannelId(11);
const GROUP: ChannelId = ChannelId(12);
const OTHER_GROUP: ChannelId = ChannelId(13);
const PROFILE: ChannelId = ChannelId(14);

const fn data_of(who: AccountId) -> ChannelId {
    ChannelId(100 + who.0)
}

const fn direct_with(who: AccountId) -> ChannelId {
    ChannelId(200 + who.0)
}

const fn on(message: MessageId) -> Dependency {
    Dependency { account: AccountId::NONE, message }
}

fn chat(text: &str) -> Content {
    Content::ChatMessage { message_type: MessageType::PLAINTEXT, text: text.to_owned(), quoted: MessageId::NONE }
}

/// A book, and the keys of everybody.
struct Desk {
    book: Book,
    next: i64,
    private: BTreeMap<AccountId, Keys>,
    /// The message with somebody's public keys; of one's own, with the private ones.
    shown: BTreeMap<AccountId, MessageId>,
}

impl Desk {
    /// With bob and carol as contacts, two groups and a profile without any keys, and a password.
    fn new() -> Self {
        let lock = AccountKeys { account_key: ChannelKey(Secret::new([1; 64])), key_hash: Secret::new([2; 32]) };
        let mut book = Book::new(ME, lock);
        let mut announce = |channel, channel_type, owner, counterpart| {
            book.announce(channel, Announced { channel_type, owner, created: DateTime::NONE, counterpart });
        };
        announce(LOOPBACK, ChannelType::Loopback, ME, AccountId::NONE);
        announce(MY_DATA, ChannelType::AccountData, ME, AccountId::NONE);
        for group in [GROUP, OTHER_GROUP] {
            announce(group, ChannelType::Group, BOB, AccountId::NONE);
        }
        announce(PROFILE, ChannelType::ProfileData, ME, AccountId::NONE);
        for who in [BOB, CAROL] {
            announce(data_of(who), ChannelType::AccountData, who, AccountId::NONE);
            announce(direct_with(who), ChannelType::Direct, ME, who);
        }
        let private = [ME, BOB, CAROL].map(|who| (who, keys::fresh().unwrap())).into();
        let mut desk = Self { book, next: 0, private, shown: BTreeMap::new() };
        let first = Content::PasswordUpdate {
            previous_key_hash: Secret::new([0; 32]),
            key_hash: Secret::new([2; 32]),
            key_history: Bytes::new(),
        };
        desk.clear(LOOPBACK, ME, MessageFlags::LOOPBACK, &first, &[]);
        let own = Content::PrivateKeys(desk.private[&ME].clone());
        let body = desk.book.seal(LOOPBACK, MessageFlags::LOOPBACK, &own, None).unwrap();
        let (id, _) = desk.hear(LOOPBACK, ME, body);
        desk.shown.insert(ME, id);
        for who in [BOB, CAROL] {
            desk.shows(who, data_of(who), who);
            desk.meets(direct_with(who), who);
        }
        desk
    }

    fn hear(&mut self, channel: ChannelId, sender: AccountId, body: Body) -> (MessageId, Vec<Read>) {
        self.next += 1;
        let (id, dispatched) = (MessageId(self.next), DateTime::NONE);
        (id, self.book.take(Delivery { channel, sender, id, skip_count: 0, dispatched, body }, false))
    }

    /// In clear.
    fn clear(
        &mut self,
        channel: ChannelId,
        sender: AccountId,
        flags: MessageFlags,
        content: &Content,
        on: &[Dependency],
    ) -> (MessageId, Vec<Read>) {
        let flags = flags.and(MessageFlags::UNENCRYPTED);
        let body = Body::new(content.kind(), flags, content.encode(None).unwrap()).on(on.iter().copied());
        self.hear(channel, sender, body)
    }

    fn sealed(
        &mut self,
        channel: ChannelId,
        sender: AccountId,
        key: &ChannelKey,
        content: &Content,
        base: MessageId,
    ) -> (MessageId, Vec<Read>) {
        let plain = content.encode(None).unwrap();
        self.hear(channel, sender, Body::new(content.kind(), MessageFlags::NONE, key.seal(&plain)).on([on(base)]))
    }

    /// The public keys of `whose`, in a channel, from somebody.
    fn shows(&mut self, whose: AccountId, channel: ChannelId, sender: AccountId) -> MessageId {
        let public = Content::PublicKeys(keys::public(&self.private[&whose]).unwrap());
        let (id, _) = self.clear(channel, sender, MessageFlags::NONE, &public, &[]);
        self.shown.insert(whose, id);
        id
    }

    /// The server's note on the keys of this account and somebody's.
    fn meets(&mut self, channel: ChannelId, whose: AccountId) -> MessageId {
        let named = [ME, whose].map(|who| Dependency { account: ME, message: self.shown[&who] });
        self.clear(channel, AccountId::NONE, MessageFlags::NONE, &Content::DirectChannelUpdate, &named).0
    }

    /// What somebody's device makes of its own private and this account's public keys.
    fn key_of(&self, who: AccountId) -> ChannelKey {
        keys::agree(&self.private[&who], &keys::public(&self.private[&ME]).unwrap()).unwrap()
    }

    /// Bob changes a group, and tells this account the keys if there are any.
    fn group_changes(&mut self, group: ChannelId, told: Option<&GroupKeys>, key_history: Bytes) -> MessageId {
        let base = *self.book.channel(direct_with(BOB)).unwrap().updates.last().unwrap();
        let told = told.map(|keys| {
            let history_key = keys.history.as_ref().map_or_else(|| Secret::new([0; 64]), |it| it.0.clone());
            let content = Content::GroupChannelKeyNotify { group, new_key: keys.channel.0.clone(), history_key };
            let key = self.key_of(BOB);
            Dependency { account: ME, message: self.sealed(direct_with(BOB), BOB, &key, &content, base).0 }
        });
        let revision = self.book.channel(group).unwrap().revision + 1;
        let members = vec![(BOB, MemberFlags::ADMINISTRATOR), (ME, MemberFlags::default())];
        let content = Content::GroupChannelUpdate { revision, members, key_history };
        self.clear(group, BOB, MessageFlags::NONE, &content, told.as_slice()).0
    }
}

fn group_keys() -> GroupKeys {
    GroupKeys { channel: ChannelKey::random(), history: Some(ChannelKey::random()) }
}

/// Something of each kind.
fn sample(kind: Kind) -> Content {
    let (text, format) = (String::from("text"), KeyFormat::BOUNCY_CASTLE);
    let keys =
        Keys { signature_format: format, signature: Bytes::new(), derivation_format: format, derivation: Bytes::new() };
    match kind {
        Kind::QueueMailAddressChange => Content::QueueMailAddressChange(text),
        Kind::MailAddress => Content::MailAddress(text),
        Kind::PasswordUpdate => Content::PasswordUpdate {
            previous_key_hash: Secret::new([0; 32]),
            key_hash: Secret::new([2; 32]),
            key_history: Bytes::new(),
        },
        Kind::PrivateKeys => Content::PrivateKeys(keys),
        Kind::PublicKeys => Content::PublicKeys(keys),
        Kind::ArchiveChannel => Content::ArchiveChannel(ArchiveMode::BLOCKED),
        Kind::VerifiedKeys => Content::VerifiedKeys([0; 32]),
        Kind::DirectChannelUpdate => Content::DirectChannelUpdate,
        Kind::DirectChannelCustomization => {
            Content::DirectChannelCustomization { nickname: text, shape: ImageShape::CIRCLE }
        }
        Kind::GroupChannelKeyNotify => Content::GroupChannelKeyNotify {
            group: GROUP,
            new_key: Secret::new([1; 64]),
            history_key: Secret::new([1; 64]),
        },
        Kind::GroupChannelUpdate => {
            Content::GroupChannelUpdate { revision: 1, members: Vec::new(), key_history: Bytes::new() }
        }
        Kind::ChatMessage => chat("text"),
        Kind::MessageOverride => Content::MessageOverride(Some(text)),
        Kind::MessageReceived => Content::MessageReceived,
        Kind::MessageRead => Content::MessageRead,
        Kind::DaystreamMessage => Content::DaystreamMessage { message_type: MessageType::PLAINTEXT, text },
        Kind::Nickname => Content::Nickname(text),
        Kind::Bio => Content::Bio(text),
        Kind::ProfileImage => Content::ProfileImage(text),
        Kind::BlockList => Content::BlockList { accounts: Vec::new(), channels: Vec::new() },
        Kind::DeviceList => Content::DeviceList(Vec::new()),
        Kind::BackgroundImage => Content::BackgroundImage,
        Kind::OnlineState => Content::OnlineState(None),
    }
}

#[test]
fn nothing_is_taken_in_clear_that_is_to_be_sealed_nor_where_it_has_no_place() {
    let channels = [LOOPBACK, MY_DATA, direct_with(BOB), GROUP, PROFILE];
    let mut desk = Desk::new();
    let mut taken = BTreeSet::new();
    for kind in Kind::ALL {
        for channel in channels {
            for flags in (0..32).map(MessageFlags).filter(|it| it.has(MessageFlags::UNENCRYPTED)) {
                let channel_type = desk.book.channel(channel).unwrap().channel_type();
                let servers = !kind.rule().from_client || *kind == Kind::ArchiveChannel;
                let sender = if channel_type == ChannelType::Direct && servers { AccountId::NONE } else { ME };
                let external = flags.has(MessageFlags::EXTERNAL_FILE).then(|| ExternalFile {
                    content_type: String::new(),
                    length: 0,
                    key: Secret::new([0; 32]),
                });
                let block = FileBlock {
                    name: String::new(),
                    created: DateTime::NONE,
                    written: DateTime::NONE,
                    thumbnail_type: String::new(),
                    thumbnail: Bytes::new(),
                    external,
                };
                let file = flags.has(MessageFlags::MEDIA).then_some(&block);
                let body = Body { file: FileId(1), ..Body::new(*kind, flags, sample(*kind).encode(file).unwrap()) };
                let (id, read) = desk.hear(channel, sender, body);
                let fine = flags.obey(&kind.rule()) && kind.rule().channels.contains(&channel_type);
                let expected = if fine { Read::Opened(id) } else { Read::Unreadable(id) };
                assert!(read.contains(&expected), "{kind:?} in {channel_type:?} with {flags:?}: {read:?}");
                if fine {
                    taken.insert(*kind);
                }
            }
        }
    }
    // What anybody says, whose keys are right, and the keys themselves: never.
    for sealed in [Kind::ChatMessage, Kind::VerifiedKeys, Kind::PrivateKeys, Kind::GroupChannelKeyNotify] {
        assert!(!taken.contains(&sealed), "{sealed:?}");
    }
}

#[test]
fn what_is_for_one_account_is_not_taken_from_another() {
    let mut desk = Desk::new();
    let content = sample(Kind::BlockList);
    let (id, read) = desk.clear(LOOPBACK, BOB, MessageFlags::LOOPBACK, &content, &[]);
    assert_eq!(read, [Read::Unreadable(id)]);
    // Nor does what is not this account's password lock it out.
    desk.clear(direct_with(BOB), ME, MessageFlags::LOOPBACK, &sample(Kind::PasswordUpdate), &[]);
    desk.clear(LOOPBACK, BOB, MessageFlags::LOOPBACK, &sample(Kind::PasswordUpdate), &[]);
    assert_eq!(desk.book.base(LOOPBACK, MessageFlags::LOOPBACK), Some(MessageId(1)));
    let (id, read) = desk.clear(direct_with(BOB), CAROL, MessageFlags::NONE, &sample(Kind::MessageRead), &[]);
    assert_eq!(read, [Read::Unreadable(id)]);
}

#[test]
fn what_was_said_in_one_channel_is_not_read_as_said_in_another() {
    let mut desk = Desk::new();
    let with_carol = *desk.book.channel(direct_with(CAROL)).unwrap().updates.last().unwrap();
    let key = desk.key_of(CAROL);
    let (id, read) = desk.sealed(direct_with(CAROL), CAROL, &key, &chat("mine"), with_carol);
    assert_eq!(read, [Read::Opened(id)]);
    let (id, read) = desk.sealed(direct_with(BOB), BOB, &key, &chat("mine"), with_carol);
    assert_eq!(read, [Read::Unreadable(id)]);

    let (ours, theirs) = (group_keys(), group_keys());
    let one = desk.group_changes(GROUP, Some(&ours), Bytes::new());
    desk.group_changes(OTHER_GROUP, Some(&theirs), Bytes::new());
    let (id, read) = desk.sealed(GROUP, BOB, &ours.channel, &chat("here"), one);
    assert_eq!(read, [Read::Opened(id)]);
    let (id, read) = desk.sealed(OTHER_GROUP, BOB, &ours.channel, &chat("here"), one);
    assert_eq!(read, [Read::Unreadable(id)]);
}

#[test]
fn what_is_compared_is_what_seals() {
    let mut desk = Desk::new();
    let channel = direct_with(BOB);
    let print = |desk: &Desk, who| {
        let public = Content::PublicKeys(keys::public(&desk.private[&who]).unwrap());
        keys::fingerprint(&public.encode(None).unwrap())
    };
    let (bobs, own) = (print(&desk, BOB), print(&desk, ME));
    assert_eq!(desk.book.fingerprints(channel), Some((bobs, own)));
    let verified = desk.book.seal(channel, MessageFlags::LOOPBACK, &Content::VerifiedKeys(bobs), None).unwrap();
    desk.hear(channel, ME, verified);
    assert!(desk.book.seal(channel, MessageFlags::NONE, &chat("to bob"), None).is_ok());

    // The server shows something else as this account's; what is compared is what is here.
    desk.private.insert(AccountId(9), keys::fresh().unwrap());
    let on_own = Dependency { account: ME, message: desk.shown[&ME] };
    for (whose, impersonated) in [(ME, false), (AccountId(9), true)] {
        let public = Content::PublicKeys(keys::public(&desk.private[&whose]).unwrap());
        desk.clear(MY_DATA, ME, MessageFlags::NONE, &public, &[on_own]);
        assert_eq!(desk.book.is_impersonated(), impersonated);
    }
    assert_eq!(desk.book.fingerprints(channel), Some((bobs, own)));

    // A note that names the keys of somebody else announces none.
    let honest = desk.book.channel(channel).unwrap().updates.clone();
    desk.meets(channel, CAROL);
    assert_eq!(desk.book.fingerprints(channel), None);
    let refused = desk.book.seal(channel, MessageFlags::NONE, &chat("to carol"), None);
    assert_eq!(refused, Err(CannotSeal::Unverified));
    let first = *honest.last().unwrap();
    let key = desk.key_of(BOB);
    let (id, read) = desk.sealed(channel, BOB, &key, &chat("still bob"), first);
    assert_eq!(read, [Read::Opened(id)]);

    // Bob has other keys: nothing is sealed with them until they were compared, but he is heard.
    desk.private.insert(BOB, keys::fresh().unwrap());
    desk.shows(BOB, data_of(BOB), BOB);
    let base = desk.meets(channel, BOB);
    let others = print(&desk, BOB);
    assert_eq!(desk.book.fingerprints(channel), Some((others, own)));
    assert_eq!(desk.book.seal(channel, MessageFlags::NONE, &chat("to bob"), None), Err(CannotSeal::Unverified));
    let key = desk.key_of(BOB);
    let (id, read) = desk.sealed(channel, BOB, &key, &chat("it is me"), base);
    assert_eq!(read, [Read::Opened(id)]);
    let verified = desk.book.seal(channel, MessageFlags::LOOPBACK, &Content::VerifiedKeys(others), None).unwrap();
    desk.hear(channel, ME, verified);
    assert!(desk.book.seal(channel, MessageFlags::NONE, &chat("to bob"), None).is_ok());
}

/// A group can have changed as often as its administrator likes, who may have been alone in it.
#[test]
fn the_keys_of_a_group_are_found_however_often_it_changed() {
    const CHANGES: usize = 20_000;
    let mut desk = Desk::new();
    let first = desk.group_changes(GROUP, None, Bytes::new());
    for _ in 1..CHANGES {
        desk.group_changes(GROUP, None, Bytes::new());
    }
    let key = group_keys();
    let (waits, read) = desk.sealed(GROUP, BOB, &key.channel, &chat("at the beginning"), first);
    assert_eq!(read, []);
    assert!(desk.book.message(waits).unwrap().opened.is_none());

    // With what opens what was before, from the last one on; the message waited for that.
    let mut desk = Desk::new();
    let told: Vec<GroupKeys> = (0..100).map(|_| group_keys()).collect();
    let mut base = MessageId::NONE;
    for (n, keys) in told.iter().enumerate() {
        let history = n.checked_sub(1).map_or_else(Bytes::new, |before| {
            let before = &told[before];
            let both = [&before.channel.0.expose()[..], &before.history.as_ref().unwrap().0.expose()[..]].concat();
            keys.history.as_ref().unwrap().seal(&both).into()
        });
        if n == 99 {
            let (_, read) = desk.sealed(GROUP, BOB, &told[0].channel, &chat("at the beginning"), base);
            assert_eq!(read, []);
        }
        let id = desk.group_changes(GROUP, (n == 99).then_some(keys), history);
        if n == 0 {
            base = id;
        }
    }
    let texts: Vec<_> = desk.book.messages().filter_map(|it| desk.book.text(it.delivery.id)).collect();
    assert_eq!(texts, ["at the beginning"]);
}

/// Whoever says a great deal, in whatever kind, pushes out their own and nobody else's.
#[test]
fn a_flood_takes_nothing_from_others_and_what_comes_is_there() {
    let mut desk = Desk::new();
    desk.book.most = Weight { messages: 1_000, bytes: usize::MAX / 16 };
    desk.book.bounds = Kept { said: desk.book.most, rest: desk.book.most };
    let (with_bob, with_carol) = (direct_with(BOB), direct_with(CAROL));
    let base = |desk: &Desk, channel| *desk.book.channel(channel).unwrap().updates.last().unwrap();
    let (of_bob, of_carol) = (base(&desk, with_bob), base(&desk, with_carol));
    let [bob, carol] = [BOB, CAROL].map(|who| desk.key_of(who));
    let (precious, _) = desk.sealed(with_carol, CAROL, &carol, &chat("precious"), of_carol);
    let used = group_keys();
    desk.group_changes(GROUP, Some(&used), Bytes::new());
    // Keys of no group that there is.
    let notify = Content::GroupChannelKeyNotify {
        group: ChannelId(77),
        new_key: Secret::new([1; 64]),
        history_key: Secret::new([1; 64]),
    };
    for n in 0..1_500 {
        desk.sealed(with_bob, BOB, &bob, &notify, of_bob);
        let (id, read) = desk.sealed(with_bob, BOB, &bob, &chat(&n.to_string()), of_bob);
        assert_eq!(read, [Read::Opened(id)], "{n}");
        assert!(desk.book.text(id).is_some(), "{n}");
        assert!(desk.book.messages.len() <= 2_000);
    }
    assert_eq!(desk.book.text(precious), Some("precious"));
    assert!(desk.book.seal(with_bob, MessageFlags::NONE, &chat("still"), None).is_ok());
    assert_eq!(desk.book.keys_of_group(GROUP), Some(used));
    // What was forgotten is not news when it comes again, unless somebody asks for it.
    let floor = desk.book.channel(with_bob).unwrap().floor;
    assert!(desk.book.message(floor).is_none() && desk.book.channel(with_carol).unwrap().floor.is_none());
    let plain = chat("again").encode(None).unwrap();
    let body = Body::new(Kind::ChatMessage, MessageFlags::NONE, bob.seal(&plain)).on([on(of_bob)]);
    let (channel, sender, id, skip_count, dispatched) = (with_bob, BOB, floor, -1, DateTime::NONE);
    let again = Delivery { channel, sender, id, skip_count, dispatched, body };
    assert_eq!(desk.book.take(again.clone(), false), []);
    assert_eq!(desk.book.take(again, true), [Read::Opened(floor)]);
    // Weights are those of what is there.
    let mut kept = Kept::default();
    desk.book.messages().for_each(|it| kept.part(is_for_people(it.delivery.body.kind)).add(Weight::of(&it.delivery)));
    assert_eq!(desk.book.kept, kept);
}

/// Who joins later, or looks back later, does not see what was taken back before.
#[test]
fn what_was_taken_back_stays_so_for_who_asks_for_it_later() {
    let mut desk = Desk::new();
    let base = *desk.book.channel(direct_with(BOB)).unwrap().updates.last().unwrap();
    let key = desk.key_of(BOB);
    let channel = direct_with(BOB);
    let first = desk.next + 1;
    desk.next += 3;
    let sealed = |content: Content, target: Option<i64>| {
        let named = std::iter::once(on(base)).chain(target.map(|id| on(MessageId(id))));
        Body::new(content.kind(), MessageFlags::NONE, key.seal(&content.encode(None).unwrap())).on(named)
    };
    desk.hear(channel, BOB, sealed(Content::MessageOverride(None), Some(first)));
    desk.hear(channel, ME, sealed(Content::MessageOverride(Some("put into his mouth".into())), Some(first + 1)));
    desk.hear(channel, BOB, sealed(Content::MessageOverride(Some("better".into())), Some(first + 2)));
    for n in 0..3 {
        let (id, skip_count, dispatched) = (MessageId(first + n), -1, DateTime::NONE);
        let body = sealed(chat("as it was"), None);
        desk.book.take(Delivery { channel, sender: BOB, id, skip_count, dispatched, body }, true);
    }
    let texts = [0, 1, 2].map(|n| desk.book.text(MessageId(first + n)));
    assert_eq!(texts, [None, Some("as it was"), Some("better")]);
}
