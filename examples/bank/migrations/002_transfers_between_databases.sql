-- A transfer may end in another database: its amount is set aside first, then taken or given back.
ALTER TABLE accounts ADD COLUMN held bigint NOT NULL DEFAULT 0 CHECK (held >= 0); -- cents
ALTER TABLE transfers DROP CONSTRAINT transfers_to_account_fkey;
ALTER TABLE transfers ADD COLUMN done boolean NOT NULL DEFAULT true;
ALTER TABLE transfers ALTER COLUMN done SET DEFAULT false;
