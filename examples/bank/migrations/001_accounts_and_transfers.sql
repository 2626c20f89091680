CREATE TABLE accounts (
    id text PRIMARY KEY,
    owner text NOT NULL,
    balance bigint NOT NULL CHECK (balance >= 0), -- cents
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE transfers (
    id text PRIMARY KEY, -- chosen by the caller: a repeated request has the same one
    from_account text NOT NULL REFERENCES accounts (id),
    to_account text NOT NULL REFERENCES accounts (id),
    amount bigint NOT NULL CHECK (amount > 0), -- cents
    created_at timestamptz NOT NULL DEFAULT now(),
    CHECK (from_account <> to_account)
);
