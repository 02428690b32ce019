-- What was said about a daystream message goes with it.
CREATE INDEX dependency_by_target ON dependency (target_id);
