//! Reading. Each statement sees one moment; what lies between two of them is nobody's but the owner's, who is the one who asks.

use futures_util::future::join;
use tokio_postgres::{Error, Row};

use super::effect::position;
use super::link::{Link, Param};
use crate::group::limits::PAYLOAD_COST;
use crate::group::ranges::RangeSet;
use crate::group::record::{GroupRecord, Held, LogEntry, Page, Seq, SlotRecord, SlotSnapshot, Snapshot};
use crate::store::seal::{self, Seal, unbroken};
use crate::store::tenure::NodeId;
use crate::store::{Census, Filling, StoreError, count_entry};
use crate::wire::d2m::{DeviceGroupId, DeviceId, Envelope, ReflectFlags, Reflected, ReflectedId, SlotExpiration};

const GROUP: &str =
    "SELECT seq_reserved, last_timestamp_ms, shared_device_data, seal FROM groups WHERE device_group_id = $1";
const SLOTS: &str =
    "SELECT device, persistent, connected, last_disconnect_ms, device_info, since, cursor, acked, acked_unseen,
        issued, counted_through, held_pending, held_entries, held_bytes, seal
    FROM slots WHERE device_group_id = $1";
/// What some slot has not counted. The length of a blob is known without reading it.
const UNCOUNTED: &str = "SELECT seq, origin, octet_length(envelope) FROM log
    WHERE device_group_id = $1 AND seq > (SELECT min(counted_through) FROM slots WHERE device_group_id = $1) ORDER BY seq";
const NEWEST: &str = "SELECT seq, origin, timestamp_ms, envelope, seal FROM log
    WHERE device_group_id = $1 AND seq > (SELECT min(counted_through) FROM slots WHERE device_group_id = $1)
    ORDER BY seq DESC LIMIT 1";
/// Entries in order until their cost passes the bound, and without its envelope the first that does not fit.
const PAGE: &str = "SELECT seq, origin, timestamp_ms, CASE WHEN cost <= $5 OR place = 1 THEN envelope END, seal
    FROM (SELECT *, sum(octet_length(envelope) + $6::INTEGER) OVER entries AS cost, row_number() OVER entries AS place
        FROM (SELECT * FROM log WHERE device_group_id = $1 AND seq > $2 AND seq <= $3 ORDER BY seq LIMIT $4) AS stretch
        WINDOW entries AS (ORDER BY seq)) AS counted
    WHERE cost - octet_length(envelope) - $6 <= $5 OR place = 2 ORDER BY seq";
const DUE: &str = "SELECT device_group_id FROM slots
    WHERE NOT connected AND persistent = $1 AND last_disconnect_ms <= $2
    AND NOT EXISTS (SELECT 1 FROM owners JOIN nodes ON nodes.node = owners.node AND nodes.expires > now()
        WHERE owners.device_group_id = slots.device_group_id AND owners.node <> $3)
    GROUP BY device_group_id ORDER BY min(last_disconnect_ms) LIMIT $4";
/// Groups whose owner is gone: what they were doing then was not written down.
const LEFT_ALONE: &str = "SELECT device_group_id FROM owners
    WHERE NOT EXISTS (SELECT 1 FROM nodes WHERE nodes.node = owners.node AND nodes.expires > now()) LIMIT $1";
const COUNT: &str = "SELECT count(*) FROM groups";
/// The empty id is before all of them.
const GROUPS_BEYOND: &str = "SELECT device_group_id,
        (SELECT count(*) FROM slots WHERE slots.device_group_id = groups.device_group_id)
    FROM groups WHERE device_group_id > $1 ORDER BY device_group_id LIMIT $2";

pub(super) const STATEMENTS: [&str; 9] = [GROUP, SLOTS, UNCOUNTED, NEWEST, PAGE, DUE, LEFT_ALONE, COUNT, GROUPS_BEYOND];

pub(super) async fn load(link: &Link, id: DeviceGroupId) -> Result<Option<Snapshot>, StoreError> {
    let bytes = &id.as_bytes()[..];
    let (group, slots, uncounted, newest) = link
        .ask(|session| async move {
            let of: [Param<'_>; 1] = [&bytes];
            let ((group, slots), (uncounted, newest)) = join(
                join(session.query(GROUP, &of), session.query(SLOTS, &of)),
                join(session.query(UNCOUNTED, &of), session.query(NEWEST, &of)),
            )
            .await;
            Ok((group?, slots?, uncounted?, newest?))
        })
        .await?;
    let Some(row) = group.first() else { return Ok(None) };
    let mut group = group_of(id, row)?;
    let records = slots.iter().map(|row| slot_of(id, row));
    let mut slots = records
        .map(|record| Ok(SlotSnapshot { record: record?, uncounted: Held::default() }))
        .collect::<Result<Vec<_>, StoreError>>()?;
    slots.sort_unstable_by_key(|slot| slot.record.device);
    for row in &uncounted {
        let bytes: i32 = get(row, 2)?;
        count_entry(&mut slots, Seq(number(row, 0)?), DeviceId(number(row, 1)?), u64::from(bytes.unsigned_abs()));
    }
    // Times do not go back, so the newest entry has the highest. Nothing is believed without its seal; a damaged one is for whoever
    // needs it to find.
    for entry in newest.iter().filter_map(|row| entry_of(id, row).ok().flatten()) {
        group.last_timestamp_ms = group.last_timestamp_ms.max(entry.message.timestamp_ms());
    }
    Ok(Some(Snapshot { group, slots }))
}

pub(super) async fn page(
    link: &Link,
    id: DeviceGroupId,
    after: Seq,
    through: Seq,
    cost_max: usize,
) -> Result<Page, StoreError> {
    let bytes = &id.as_bytes()[..];
    let bound = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    // As many as can fit, the one that comes whatever it costs, and the one that does not fit.
    let (most, cost, each) =
        (bound(cost_max / PAYLOAD_COST + 2), bound(cost_max), i32::try_from(PAYLOAD_COST).unwrap_or(i32::MAX));
    let (after, last) = (position(after), position(through));
    let (group, rows) = link
        .ask(|session| async move {
            let of: [Param<'_>; 1] = [&bytes];
            let stretch: [Param<'_>; 6] = [&bytes, &after, &last, &most, &cost, &each];
            let (group, rows) = join(session.query(GROUP, &of), session.query(PAGE, &stretch)).await;
            Ok((group?, rows?))
        })
        .await?;
    let mut page = Filling::new(cost_max);
    let Some(row) = group.first() else { return Ok(page.ended(through)) };
    group_of(id, row)?;
    for row in &rows {
        let Some(entry) = entry_of(id, row)? else { return Ok(page.cut_short()) };
        if !page.fits(entry.message.envelope().len()) {
            return Ok(page.cut_short());
        }
        page.entries.push(entry);
    }
    Ok(page.ended(through))
}

/// Without groups that another living node has: it looks after them itself.
pub(super) async fn due(
    link: &Link,
    node: Option<NodeId>,
    volatile_before_ms: u64,
    persistent_before_ms: Option<u64>,
    most: usize,
) -> Result<Vec<DeviceGroupId>, StoreError> {
    let node = node.map_or(0, |node| node.0);
    let most_rows = i64::try_from(most).unwrap_or(i64::MAX);
    let time = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    let (volatile_before, persistent_before) = (time(volatile_before_ms), persistent_before_ms.map(time));
    let rows = link
        .ask(|session| async move {
            let mut rows = session.query(DUE, &[&false, &volatile_before, &node, &most_rows]).await?;
            if let Some(before) = persistent_before {
                rows.extend(session.query(DUE, &[&true, &before, &node, &most_rows]).await?);
            }
            rows.extend(session.query(LEFT_ALONE, &[&most_rows]).await?);
            Ok(rows)
        })
        .await?;
    let mut due = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for row in &rows {
        let id = id_of(row)?;
        if due.len() < most && seen.insert(id) {
            due.push(id);
        }
    }
    Ok(due)
}

pub(super) async fn census(link: &Link, after: Option<DeviceGroupId>, most: usize) -> Result<Census, StoreError> {
    let after = after.as_ref().map_or(&[][..], |id| id.as_bytes());
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let (count, rows) = link
        .ask(|session| async move {
            let beyond: [Param<'_>; 2] = [&after, &most];
            let (count, rows) = join(session.query(COUNT, &[]), session.query(GROUPS_BEYOND, &beyond)).await;
            Ok((count?, rows?))
        })
        .await?;
    let groups = count.first().map_or(Ok(0), |row| number(row, 0))?;
    let some = rows.iter().map(|row| Ok((id_of(row)?, number(row, 1)?))).collect::<Result<_, StoreError>>()?;
    Ok(Census { groups, some })
}

pub(super) async fn knows(link: &Link, id: DeviceGroupId) -> Result<bool, StoreError> {
    let bytes = &id.as_bytes()[..];
    Ok(!link.ask(|session| async move { session.query(GROUP, &[&bytes]).await }).await?.is_empty())
}

fn group_of(id: DeviceGroupId, row: &Row) -> Result<GroupRecord, StoreError> {
    let record = GroupRecord {
        seq_reserved: Seq(number(row, 0)?),
        last_timestamp_ms: number(row, 1)?,
        encrypted_shared_device_data: get(row, 2)?,
    };
    unbroken(seal_of(row, 3)?, seal::group(0, id, &record), "a group")?;
    Ok(record)
}

fn slot_of(id: DeviceGroupId, row: &Row) -> Result<SlotRecord, StoreError> {
    let ranges = |column: usize| {
        RangeSet::from_bytes(get(row, column)?)
            .ok_or_else(|| StoreError::Damaged("what a slot acknowledged is no set".to_owned()))
    };
    let record = SlotRecord {
        device: DeviceId(number(row, 0)?),
        expiration: if get(row, 1)? { SlotExpiration::Persistent } else { SlotExpiration::Volatile },
        connected: get(row, 2)?,
        last_disconnect_ms: number(row, 3)?,
        encrypted_device_info: get(row, 4)?,
        since: Seq(number(row, 5)?),
        cursor: Seq(number(row, 6)?),
        acked: ranges(7)?,
        acked_unseen: ranges(8)?,
        issued: Seq(number(row, 9)?),
        counted_through: Seq(number(row, 10)?),
        held: Held { pending: number(row, 11)?, entries: number(row, 12)?, bytes: number(row, 13)? },
    };
    unbroken(seal_of(row, 14)?, seal::slot(0, Some(id), &record), "a slot")?;
    Ok(record)
}

/// `None` for one whose envelope was not sent.
fn entry_of(id: DeviceGroupId, row: &Row) -> Result<Option<LogEntry>, StoreError> {
    let key: i64 = get(row, 0)?;
    let (origin, timestamp_ms) = (DeviceId(number(row, 1)?), number(row, 2)?);
    let Some(envelope) = get::<Option<&[u8]>>(row, 3)? else { return Ok(None) };
    unbroken(seal_of(row, 4)?, seal::entry(key, Some(id), origin, timestamp_ms, envelope), "an entry of the log")?;
    let seq = Seq(key.cast_unsigned());
    let id = ReflectedId(seq.wire_id());
    let message = Reflected::new(Envelope::copy_from(envelope), ReflectFlags::default(), id, timestamp_ms);
    Ok(Some(LogEntry { seq, origin, message }))
}

pub(super) fn id_of(row: &Row) -> Result<DeviceGroupId, StoreError> {
    let bytes: &[u8] = get(row, 0)?;
    let id = bytes.try_into().map_err(|_| StoreError::Damaged("an id of a group is not 32 bytes long".to_owned()))?;
    Ok(DeviceGroupId::new(id))
}

/// One that is too short or too long matches nothing.
fn seal_of(row: &Row, column: usize) -> Result<Seal, StoreError> {
    Ok(get::<&[u8]>(row, column)?.try_into().unwrap_or_default())
}

fn number(row: &Row, column: usize) -> Result<u64, StoreError> {
    get::<i64>(row, column).map(i64::cast_unsigned)
}

/// What does not have the type it was written with is damage.
fn get<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, StoreError> {
    row.try_get(column).map_err(|error: Error| StoreError::Damaged(error.to_string()))
}
