BEGIN TRANSACTION;
CREATE TABLE alarms (
	at_ms BIGINT NOT NULL, 
	what VARCHAR(64) NOT NULL, 
	client_id VARCHAR(64) NOT NULL, 
	source VARCHAR(128) NOT NULL
);
INSERT INTO "alarms" VALUES(1700000000001,'what-1','client_id-1','source-1');
INSERT INTO "alarms" VALUES(1700000000002,'what-2','client_id-2','source-2');
CREATE TABLE certificates (
	serial VARCHAR(48) NOT NULL, 
	client_id VARCHAR(64) NOT NULL, 
	issued_at_ms BIGINT NOT NULL, 
	not_after_ms BIGINT NOT NULL, 
	revoked_at_ms BIGINT NOT NULL, 
	CONSTRAINT pk_certificates PRIMARY KEY (serial), 
	CONSTRAINT fk_certificates_client_id FOREIGN KEY(client_id) REFERENCES clients (client_id)
);
INSERT INTO "certificates" VALUES('serial-1','client_id-1',1700000000001,1700000000001,1700000000001);
INSERT INTO "certificates" VALUES('serial-2','client_id-2',1700000000002,1700000000002,1700000000002);
CREATE TABLE claims (
	secret_hash BLOB NOT NULL, 
	client_id VARCHAR(64) NOT NULL, 
	issued_at_ms BIGINT NOT NULL, 
	expires_at_ms BIGINT NOT NULL, 
	used_at_ms BIGINT NOT NULL, 
	public_key BLOB NOT NULL, 
	leaf_der BLOB NOT NULL, 
	CONSTRAINT pk_claims PRIMARY KEY (secret_hash), 
	CONSTRAINT fk_claims_client_id FOREIGN KEY(client_id) REFERENCES clients (client_id)
);
INSERT INTO "claims" VALUES(X'0100FF0100FF0100FF0100FF0100FF0100FF0100FF0100FF','client_id-1',1700000000001,1700000000001,1700000000001,X'0100FF0100FF0100FF0100FF0100FF0100FF0100FF0100FF',X'0100FF0100FF0100FF0100FF0100FF0100FF0100FF0100FF');
INSERT INTO "claims" VALUES(X'0200FF0200FF0200FF0200FF0200FF0200FF0200FF0200FF','client_id-2',1700000000002,1700000000002,1700000000002,X'0200FF0200FF0200FF0200FF0200FF0200FF0200FF0200FF',X'0200FF0200FF0200FF0200FF0200FF0200FF0200FF0200FF');
CREATE TABLE clients (
	client_id VARCHAR(64) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	labels JSON NOT NULL, 
	enrolled_at_ms BIGINT NOT NULL, 
	last_seen_ms BIGINT NOT NULL, 
	online BOOLEAN NOT NULL, 
	not_before_ms BIGINT NOT NULL, 
	not_before_reason TEXT NOT NULL, 
	profile JSON NOT NULL, 
	revoked_reason TEXT NOT NULL, 
	CONSTRAINT pk_clients PRIMARY KEY (client_id)
);
INSERT INTO "clients" VALUES('client_id-1','enrolled','{"n": 1, "x": 0.5, "s": "\u00e4"}',1700000000001,1700000000001,1,1700000000001,'not_before_reason-1','{"n": 1, "x": 0.5, "s": "\u00e4"}','revoked_reason-1');
INSERT INTO "clients" VALUES('client_id-2','enrolled','{"n": 2, "x": 0.5, "s": "\u00e4"}',1700000000002,1700000000002,0,1700000000002,'not_before_reason-2','{"n": 2, "x": 0.5, "s": "\u00e4"}','revoked_reason-2');
CREATE TABLE cohort (
	round_id BIGINT NOT NULL, 
	client_id VARCHAR(64) NOT NULL, 
	nonce BLOB NOT NULL, 
	stage VARCHAR(16) NOT NULL, 
	checked_in_at_ms BIGINT NOT NULL, 
	settled_at_ms BIGINT NOT NULL, 
	loss VARCHAR(32) NOT NULL, 
	encoding INTEGER NOT NULL, 
	length_bytes BIGINT NOT NULL, 
	sha256 BLOB NOT NULL, 
	examples BIGINT NOT NULL, 
	sums JSON NOT NULL, 
	masked BLOB NOT NULL, 
	bytes_down BIGINT NOT NULL, 
	bytes_up BIGINT NOT NULL, 
	invocation JSON NOT NULL, 
	CONSTRAINT pk_cohort PRIMARY KEY (round_id, client_id), 
	CONSTRAINT fk_cohort_round_id FOREIGN KEY(round_id) REFERENCES rounds (round_id)
);
INSERT INTO "cohort" VALUES(201,'client_id-1',X'0100FF0100FF0100FF0100FF0100FF0100FF0100FF0100FF','stage-1',1700000000001,1700000000001,'loss-1',1,1700000000001,X'0100FF0100FF0100FF0100FF0100FF0100FF0100FF0100FF',1700000000001,'{"n": 1, "x": 0.5, "s": "\u00e4"}',X'0100FF0100FF0100FF0100FF0100FF0100FF0100FF0100FF',1700000000001,1700000000001,'{"n": 1, "x": 0.5, "s": "\u00e4"}');
INSERT INTO "cohort" VALUES(202,'client_id-2',X'0200FF0200FF0200FF0200FF0200FF0200FF0200FF0200FF','stage-2',1700000000002,1700000000002,'loss-2',2,1700000000002,X'0200FF0200FF0200FF0200FF0200FF0200FF0200FF0200FF',1700000000002,'{"n": 2, "x": 0.5, "s": "\u00e4"}',X'0200FF0200FF0200FF0200FF0200FF0200FF0200FF0200FF',1700000000002,1700000000002,'{"n": 2, "x": 0.5, "s": "\u00e4"}');
CREATE TABLE counters (
	client_id VARCHAR(64) NOT NULL, 
	name VARCHAR(64) NOT NULL, 
	count BIGINT NOT NULL, 
	last_at_ms BIGINT NOT NULL, 
	CONSTRAINT pk_counters PRIMARY KEY (client_id, name)
);
INSERT INTO "counters" VALUES('client_id-1','name-1',1700000000001,1700000000001);
INSERT INTO "counters" VALUES('client_id-2','name-2',1700000000002,1700000000002);
CREATE TABLE epoch_shares (
	epoch BIGINT NOT NULL, 
	member INTEGER NOT NULL, 
	shares BLOB NOT NULL, 
	CONSTRAINT pk_epoch_shares PRIMARY KEY (epoch, member), 
	CONSTRAINT fk_epoch_shares_epoch FOREIGN KEY(epoch) REFERENCES key_epochs (epoch)
);
INSERT INTO "epoch_shares" VALUES(101,1,X'0100FF0100FF0100FF0100FF0100FF0100FF0100FF0100FF');
INSERT INTO "epoch_shares" VALUES(102,2,X'0200FF0200FF0200FF0200FF0200FF0200FF0200FF0200FF');
CREATE TABLE events (
	run_id VARCHAR(64) NOT NULL, 
	sequence BIGINT NOT NULL, 
	at_ms BIGINT NOT NULL, 
	event VARCHAR(64) NOT NULL, 
	round_id BIGINT NOT NULL, 
	client_id VARCHAR(64) NOT NULL, 
	fields JSON NOT NULL, 
	CONSTRAINT pk_events PRIMARY KEY (run_id, sequence), 
	CONSTRAINT fk_events_run_id FOREIGN KEY(run_id) REFERENCES runs (run_id)
);
INSERT INTO "events" VALUES('run_id-1',1700000000001,1700000000001,'event-1',201,'client_id-1','{"n": 1, "x": 0.5, "s": "\u00e4"}');
INSERT INTO "events" VALUES('run_id-2',1700000000002,1700000000002,'event-2',202,'client_id-2','{"n": 2, "x": 0.5, "s": "\u00e4"}');
CREATE TABLE functions (
	client_id VARCHAR(64) NOT NULL, 
	platform VARCHAR(32) NOT NULL, 
	settings JSON NOT NULL, 
	added_at_ms BIGINT NOT NULL, 
	CONSTRAINT pk_functions PRIMARY KEY (client_id), 
	CONSTRAINT fk_functions_client_id FOREIGN KEY(client_id) REFERENCES clients (client_id)
);
INSERT INTO "functions" VALUES('client_id-1','platform-1','{"n": 1, "x": 0.5, "s": "\u00e4"}',1700000000001);
INSERT INTO "functions" VALUES('client_id-2','platform-2','{"n": 2, "x": 0.5, "s": "\u00e4"}',1700000000002);
CREATE TABLE helper_rounds (
	round_id BIGINT NOT NULL, 
	opened BLOB NOT NULL, 
	refused JSON NOT NULL, 
	CONSTRAINT pk_helper_rounds PRIMARY KEY (round_id), 
	CONSTRAINT fk_helper_rounds_round_id FOREIGN KEY(round_id) REFERENCES rounds (round_id)
);
INSERT INTO "helper_rounds" VALUES(201,X'0100FF0100FF0100FF0100FF0100FF0100FF0100FF0100FF','{"n": 1, "x": 0.5, "s": "\u00e4"}');
INSERT INTO "helper_rounds" VALUES(202,X'0200FF0200FF0200FF0200FF0200FF0200FF0200FF0200FF','{"n": 2, "x": 0.5, "s": "\u00e4"}');
CREATE TABLE key_epochs (
	epoch BIGINT NOT NULL, 
	run_id VARCHAR(64) NOT NULL, 
	cohort JSON NOT NULL, 
	minimum INTEGER NOT NULL, 
	opened_at_ms BIGINT NOT NULL, 
	keys_until_ms BIGINT NOT NULL, 
	shares_until_ms BIGINT NOT NULL, 
	state BLOB NOT NULL, 
	reason TEXT NOT NULL, 
	ended_at_ms BIGINT NOT NULL, 
	CONSTRAINT pk_key_epochs PRIMARY KEY (epoch), 
	CONSTRAINT fk_key_epochs_run_id FOREIGN KEY(run_id) REFERENCES runs (run_id)
);
INSERT INTO "key_epochs" VALUES(101,'run_id-1','{"n": 1, "x": 0.5, "s": "\u00e4"}',1,1700000000001,1700000000001,1700000000001,X'0100FF0100FF0100FF0100FF0100FF0100FF0100FF0100FF','reason-1',1700000000001);
INSERT INTO "key_epochs" VALUES(102,'run_id-2','{"n": 2, "x": 0.5, "s": "\u00e4"}',2,1700000000002,1700000000002,1700000000002,X'0200FF0200FF0200FF0200FF0200FF0200FF0200FF0200FF','reason-2',1700000000002);
CREATE TABLE masked_rounds (
	round_id BIGINT NOT NULL, 
	epoch BIGINT NOT NULL, 
	state BLOB NOT NULL, 
	CONSTRAINT pk_masked_rounds PRIMARY KEY (round_id), 
	CONSTRAINT fk_masked_rounds_round_id FOREIGN KEY(round_id) REFERENCES rounds (round_id), 
	CONSTRAINT fk_masked_rounds_epoch FOREIGN KEY(epoch) REFERENCES key_epochs (epoch)
);
INSERT INTO "masked_rounds" VALUES(201,101,X'0100FF0100FF0100FF0100FF0100FF0100FF0100FF0100FF');
INSERT INTO "masked_rounds" VALUES(202,102,X'0200FF0200FF0200FF0200FF0200FF0200FF0200FF0200FF');
CREATE TABLE model_state (
	run_id VARCHAR(64) NOT NULL, 
	version INTEGER NOT NULL, 
	name VARCHAR(64) NOT NULL, 
	digest BLOB NOT NULL, 
	CONSTRAINT pk_model_state PRIMARY KEY (run_id, version, name), 
	CONSTRAINT fk_model_state_run_id_version FOREIGN KEY(run_id, version) REFERENCES models (run_id, version)
);
INSERT INTO "model_state" VALUES('run_id-1',1,'name-1',X'0100FF0100FF0100FF0100FF0100FF0100FF0100FF0100FF');
INSERT INTO "model_state" VALUES('run_id-2',2,'name-2',X'0200FF0200FF0200FF0200FF0200FF0200FF0200FF0200FF');
CREATE TABLE models (
	run_id VARCHAR(64) NOT NULL, 
	version INTEGER NOT NULL, 
	digest BLOB NOT NULL, 
	round_id BIGINT NOT NULL, 
	created_at_ms BIGINT NOT NULL, 
	CONSTRAINT pk_models PRIMARY KEY (run_id, version), 
	CONSTRAINT fk_models_run_id FOREIGN KEY(run_id) REFERENCES runs (run_id)
);
INSERT INTO "models" VALUES('run_id-1',1,X'0100FF0100FF0100FF0100FF0100FF0100FF0100FF0100FF',201,1700000000001);
INSERT INTO "models" VALUES('run_id-2',2,X'0200FF0200FF0200FF0200FF0200FF0200FF0200FF0200FF',202,1700000000002);
CREATE TABLE rounds (
	round_id BIGINT NOT NULL, 
	run_id VARCHAR(64) NOT NULL, 
	number INTEGER NOT NULL, 
	kind INTEGER NOT NULL, 
	mode VARCHAR(16) NOT NULL, 
	model_version INTEGER NOT NULL, 
	terms JSON NOT NULL, 
	phase VARCHAR(16) NOT NULL, 
	reason TEXT NOT NULL, 
	opened_at_ms BIGINT NOT NULL, 
	grace_until_ms BIGINT NOT NULL, 
	ended_at_ms BIGINT NOT NULL, 
	metrics JSON NOT NULL, 
	phases_ms JSON NOT NULL, 
	CONSTRAINT pk_rounds PRIMARY KEY (round_id), 
	CONSTRAINT fk_rounds_run_id FOREIGN KEY(run_id) REFERENCES runs (run_id)
);
INSERT INTO "rounds" VALUES(201,'run_id-1',1,1,'mode-1',1,'{"n": 1, "x": 0.5, "s": "\u00e4"}','phase-1','reason-1',1700000000001,1700000000001,1700000000001,'{"n": 1, "x": 0.5, "s": "\u00e4"}','{"n": 1, "x": 0.5, "s": "\u00e4"}');
INSERT INTO "rounds" VALUES(202,'run_id-2',2,2,'mode-2',2,'{"n": 2, "x": 0.5, "s": "\u00e4"}','phase-2','reason-2',1700000000002,1700000000002,1700000000002,'{"n": 2, "x": 0.5, "s": "\u00e4"}','{"n": 2, "x": 0.5, "s": "\u00e4"}');
CREATE TABLE runs (
	run_id VARCHAR(64) NOT NULL, 
	task_name VARCHAR(64) NOT NULL, 
	settings TEXT NOT NULL, 
	task BLOB NOT NULL, 
	bundle_digest BLOB NOT NULL, 
	test_set_digest BLOB NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	reason TEXT NOT NULL, 
	rounds_wanted INTEGER NOT NULL, 
	started_at_ms BIGINT NOT NULL, 
	ended_at_ms BIGINT NOT NULL, 
	CONSTRAINT pk_runs PRIMARY KEY (run_id)
);
INSERT INTO "runs" VALUES('run_id-1','task_name-1','settings-1',X'0100FF0100FF0100FF0100FF0100FF0100FF0100FF0100FF',X'0100FF0100FF0100FF0100FF0100FF0100FF0100FF0100FF',X'0100FF0100FF0100FF0100FF0100FF0100FF0100FF0100FF','finished','reason-1',1,1700000000001,1700000000001);
INSERT INTO "runs" VALUES('run_id-2','task_name-2','settings-2',X'0200FF0200FF0200FF0200FF0200FF0200FF0200FF0200FF',X'0200FF0200FF0200FF0200FF0200FF0200FF0200FF0200FF',X'0200FF0200FF0200FF0200FF0200FF0200FF0200FF0200FF','finished','reason-2',2,1700000000002,1700000000002);
CREATE TABLE schema_version (
	version INTEGER NOT NULL
);
INSERT INTO "schema_version" VALUES(1);
CREATE INDEX ix_alarms_at_ms ON alarms (at_ms);
CREATE INDEX ix_rounds_run_id ON rounds (run_id);
CREATE INDEX ix_rounds_phase ON rounds (phase);
CREATE INDEX ix_claims_client_id ON claims (client_id);
CREATE INDEX ix_certificates_client_id ON certificates (client_id);
CREATE INDEX ix_key_epochs_run_id ON key_epochs (run_id);
CREATE INDEX ix_cohort_client_id ON cohort (client_id);
CREATE INDEX ix_masked_rounds_epoch ON masked_rounds (epoch);
COMMIT;
