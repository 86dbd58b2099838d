"""*Pure.* Secure aggregation: the aggregator learns the sum of a round's updates and nothing else.

How a driver uses it. No function here reads a clock, a file or randomness: moments (`at_ms`, the aggregator's
clock in Unix milliseconds), seeds (32 bytes of `os.urandom`), signers and verifiers are arguments. States and
messages are frozen dataclasses; `codec.dumps(x)` and `codec.loads(Type, data)` make them bytes for the journal,
the store and the wire, and `loads` refuses anything malformed. **Store what a function returns, then send.** A
repeat of any call with the same message gives the same answer. What the other party did wrong is a `PeerError`.

Callables that a driver passes in (types in `messages`):

    sign(message) -> signature                     client, helper: ECDSA with the certificate's key (crypto.ecdsa_sign);
                                                   aggregator: Ed25519 with the ticket key (crypto.ed25519_sign)
    verify_member(certificate, at_ms) -> Member    chain, role device or function, deny list (identity.verify_chain)
    verify_aggregator(signature, message) -> bool  against the ticket keys that the client trusts

Numbers: `epochs.cohort_sizes(n)`, `epochs.next_slots(previous)`, `epochs.threshold(n, trust)`;
`ring.plan(n=len(E) or n_max, dimension=P, clip=..., max_examples=...)` makes the `RingEncoding` that M4 carries and
refuses what would overflow. A client's rules are a `policy.Policy` (`from_enrollment`, `tighten`).

## Pairwise mode: a key epoch, then one round for each slot

    M0 <-  client      state, m0 = setup.begin_epoch(state, epoch, slots, chain_key=seed, ...)
           aggregator  epoch = ServerEpoch(number, slots, trust); epoch = assembly.accept_keys(epoch, m0, ...)
    M1 ->  aggregator  epoch = assembly.make_roster(epoch, ...); m1 = epoch.roster
           client      state, m2 = setup.accept_roster(state, m1, policy, ...)
    M2 <-  aggregator  epoch = assembly.accept_shares(epoch, m2); the M2 itself is stored as a row
    M3 ->  aggregator  epoch = assembly.activate(epoch, ...); m3 = assembly.inbox_for(epoch, index, rows)
           client      state, failed = setup.accept_inbox(state, m3, policy, ...)

    M4 ->  aggregator  epoch, round = server.open_round(epoch, RoundOpen(..., signature=b""), sign=...)
           client      state = client.accept_round(state, m4, ...); train;
                       words = ring.encode(m4.encoding, update, examples, extras, seed)
    M5 <-  client      state, head = client.mask_report(state, m4, words, sign=...)      (masks in place)
           aggregator  server.check_report(...) before the bytes, then spool them; check length and digest;
                       round = server.accept_report(epoch, round, head, ...)
    M6 ->  aggregator  epoch, round = server.close_reports(epoch, round, sign=...);
                       m6 = round.request, or None and round.result says why the round was abandoned
    M7 <-  client      state, m7 = client.answer_unmask(state, m6, ...)
           aggregator  round = server.accept_response(epoch, round, m7), until server.can_recover(epoch, round)
    M8 ->  aggregator  round, recovery = server.recover(epoch, round); server.remove_masks(round, recovery, total);
                       epoch, round, decoded = server.finish(epoch, round, total, sign=...); m8 = round.result
           client      state = client.accept_result(state, m8, ...)

Stored before sent: the client's `ClientState` after every call; at M5 the state, the head and the masked
bytes in one transaction, fsynced, and then only those bytes are ever sent. The aggregator's `ServerEpoch` and
`ServerRound` before M1, M3, M4, M6 and M8; a report's spool file before `accept_report` is stored.

`total` is the ring sum of all accepted masked vectors: `total = numpy.zeros(encoding.words, prg.word_dtype(bits))`,
then `numpy.add(total[a:b], chunk, out=total[a:b])` as chunks arrive or when it is rebuilt from the spool. Only what
`round.reports` names may be in it.

`recover` raising `TOO_FEW` or `BAD_SHARE`: wait for more answers, or `abandon(epoch, round, code, ...)`. After M6 was
signed the only retry is the same M6. `epoch.is_over(revoked)` says when to begin the next key epoch. A client that
raises `NOT_IN_COHORT`, `TOO_FEW` or `BAD_BOX` on M3, or is told `STATE_OLDER`, calls `state.leave`; check-ins carry
`state.mark(state)`, which the aggregator gives to `server.check_mark`.

## Helper mode: one message per client (`helper`)

    aggregator   opened = open_helper_round(HelperOpen(... signature=b""), sign=...)
    client       state = accept_helper_round(opened, policy, state, ...); train; words = ring.encode(...)
                 head = mask_for_helper(opened, id, certificate, words, seed=seed, sign=...)   masks in place
                 store head and words in one transaction, then send them
    aggregator   check_helper_report(opened, head, ...); spool; request = CloseRequest(opened, heads)
    helper       check_request, close_set -> Closing or RefusedReports (ask again without those); repeats;
                 store what `Closing` says; sum_masks, sign_sum; answer
    aggregator   check_mask_sum(request, answer, words, member); subtract_masks(total, words); ring.decode(...)
"""
