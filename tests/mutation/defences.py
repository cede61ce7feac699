"""The defences, each with the change that removes it and the test that then fails.

The list is for people as much as for the runner: docs/defences.md is made from it. A `search` text
stands exactly once in its file; `replace` takes the defence away and leaves the rest working.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Defence:
    """One defence.

    Attributes:
        name: what it keeps from happening.
        file: where it stands, from the top of the tree.
        search, replace: the change that removes it.
        test: the node id of a test that fails without it.
        quick: whether the default test run removes it for real.
    """

    name: str
    file: str
    search: str
    replace: str
    test: str
    quick: bool = False


_HANDOFF = "tests/protocol/test_handoff.py::"
_RECORDS = "tests/protocol/test_records.py::"
_WIRE = "tests/protocol/test_wire.py::"
_SESSION = "tests/channel/test_session.py::"
_STRANGERS = "tests/daemon/test_strangers.py::"
_MEMORY = "tests/channel/test_key_memory.py::"
_POLICY = "tests/agent/test_policy_and_sim.py::"
_CRASH = "tests/agent/test_crash.py::"
_MODEL = "tests/model/test_model.py::"
_PARKS = "tests/runtime/test_cancelled_park.py::"
_WRITTEN = "tests/agent/test_written_files.py::"
_OWN = "tests/mutation/test_defences.py::"

_COMPARED = "        if getattr(token, name) != getattr(expected, name)\n"

DEFENCES = (
    # One instance, never two.
    Defence(
        "a source that was cancelled in the same moment as READY came does not let go",
        "enclave_shim/migration/source.py",
        "        if Action.SEAL_TOKEN not in self.migration.handle(Event.READY_EQUAL):\n",
        "        if not isinstance(self.migration.handle(Event.READY_EQUAL), tuple):\n",
        _CRASH + "test_a_cancel_that_comes_with_ready_is_a_cancel",
    ),
    Defence(
        "a destination that is told to end in the moment in which it is ready does not say READY",
        "enclave_shim/migration/destination.py",
        "        await trio.lowlevel.checkpoint_if_cancelled()\n",
        "",
        _CRASH + "test_what_ends_the_destination_in_the_turn_of_ready_keeps_it_unsaid",
    ),
    Defence(
        "a token of another owner generation starts nothing",
        "protocol/handoff.py",
        _COMPARED,
        '        if getattr(token, name) != getattr(expected, name) and name != "generation"\n',
        _HANDOFF + "test_a_token_for_something_else_is_refused",
        quick=True,
    ),
    Defence(
        "a token for another instance starts nothing",
        "protocol/handoff.py",
        _COMPARED,
        "        if getattr(token, name) != getattr(expected, name)\n"
        '        and name != "destination_instance"\n',
        _HANDOFF + "test_a_token_for_something_else_is_refused",
    ),
    Defence(
        "a token for another state starts nothing",
        "protocol/handoff.py",
        _COMPARED,
        '        if getattr(token, name) != getattr(expected, name) and name != "state_digest"\n',
        _HANDOFF + "test_a_token_for_something_else_is_refused",
    ),
    Defence(
        "a token of another migration starts nothing",
        "protocol/handoff.py",
        _COMPARED,
        '        if getattr(token, name) != getattr(expected, name) and name != "migration_id"\n',
        _HANDOFF + "test_a_token_for_something_else_is_refused",
    ),
    Defence(
        "a session makes one token and never a second",
        "protocol/handoff_seals.py",
        "        if self._side != kind.sealer or kind.name in self._sealed:\n",
        "        if self._side != kind.sealer:\n",
        _SESSION + "test_a_token_opens_any_number_of_times_and_is_made_once",
    ),
    Defence(
        "a repeated token starts nothing",
        "protocol/states.py",
        "Event.TOKEN_ACCEPTED, Phase.COMPLETED, (Action.SEND_RESUMED,)\n",
        "Event.TOKEN_ACCEPTED, Phase.STARTING, (Action.RUN,)\n",
        _HANDOFF + "test_a_repeated_token_starts_nothing_twice",
    ),
    Defence(
        "nothing resumes a source that has released",
        "protocol/states.py",
        "        yield Phase.RELEASED, event, Phase.RELEASED, ()\n",
        "        yield Phase.RELEASED, event, Phase.RELEASED, (Action.RESUME_SOURCE,)\n",
        _MODEL + "test_with_one_fault_both_sides_end_alike",
    ),
    Defence(
        "silence destroys no destination that has said READY",
        "protocol/states.py",
        "        yield Phase.AWAITING_TOKEN, event, Phase.AWAITING_TOKEN, (Action.ASK_SOURCE,)\n",
        "        yield Phase.AWAITING_TOKEN, event, Phase.FAILED, destroy\n",
        _HANDOFF + "test_silence_destroys_no_destination_that_has_said_ready",
    ),
    Defence(
        "a destination that may have said READY past its daemon is not destroyed by it",
        "protocol/recovery.py",
        '    return state in ("active", "switchover")\n',
        '    return state == "switchover"\n',
        "tests/daemon/test_handoff.py::"
        "test_link_cut_when_the_destinations_daemon_has_heard_nothing_of_ready",
    ),
    Defence(
        "a source that is still deciding does not have its destination destroyed",
        "protocol/recovery.py",
        "    return Outcome.RELEASED if must_deliver(row.token) else Outcome.PENDING\n",
        "    return Outcome.RELEASED if must_deliver(row.token) else Outcome.FAILED\n",
        _MODEL + "test_with_one_fault_both_sides_end_alike",
    ),
    Defence(
        "a starting daemon destroys nothing that waits for its token",
        "protocol/recovery.py",
        '    if instance_state == "incoming" and (row is None or not agent_alive):\n',
        '    if instance_state == "incoming":\n',
        _MODEL + "test_with_one_fault_both_sides_end_alike",
    ),
    Defence(
        "a daemon destroys a waiting instance at its shim's word alone",
        "optmigd/daemon/incoming.py",
        '            if stops_waiting(str(answer.get("state"))) and await self._shim_gives_up():\n',
        '            if stops_waiting(str(answer.get("state"))):\n'
        "                self._arrival.aborted = True\n",
        "tests/daemon/test_handoff.py::test_a_new_daemon_destroys_nothing_that_runs",
    ),
    Defence(
        "the token is on disk before it is on the wire",
        "optmigd/daemon/outgoing.py",
        "        await journal.insist(lambda: journal.save_migration(self._row, then=send))\n",
        '        self._fill_row("active")\n',
        "tests/daemon/test_handoff.py::test_link_cut_after_the_release",
    ),
    Defence(
        "the token is on disk before it is on a data stream",
        "optmigd/daemon/outgoing.py",
        "        await journal.insist(lambda: journal.save_migration(self._row, then=send))\n",
        "        send()\n        await journal.insist(lambda: journal.save_migration(self._row))\n",
        "tests/daemon/test_full_disk.py::test_a_token_waits_until_it_is_journaled[stream]",
    ),
    Defence(
        "what stands on a data stream in the token's place ends no instance that waits for it",
        "enclave_shim/migration/destination.py",
        '        except OptmigError as error:\n            self._log.info("no_token_on_stream"',
        "        except ZeroDivisionError as error:\n"
        '            self._log.info("no_token_on_stream"',
        "tests/attacks/test_handoff.py::"
        "test_a_wrong_token_on_a_stream_starts_nothing_and_ends_nothing[changed]",
    ),
    Defence(
        "what is journaled is on the disk",
        "optmigd/daemon/journal.py",
        'connection.execute("PRAGMA synchronous = FULL")',
        'connection.execute("PRAGMA synchronous = OFF")',
        _OWN + "test_the_journal_waits_for_the_disk",
    ),
    Defence(
        "the source is not freed by the confirmation of another move",
        "enclave_shim/migration/departure.py",
        "        if (report.migration_id, report.generation) != expected:\n",
        "        if False:\n",
        _OWN + "test_a_confirmation_of_another_generation_frees_nothing",
    ),
    Defence(
        "the token is noted before the source cannot run any more",
        "enclave_shim/migration/source.py",
        "        departure.note(self._memory)\n        process.release()\n",
        "        process.release()\n        departure.note(self._memory)\n",
        _CRASH + "test_a_source_that_has_let_go_only_goes_forward",
    ),
    Defence(
        "a shim agent that crashes is replaced",
        "enclave_shim/keeper.py",
        "                if not self._ready:\n                    return status",
        "                if True:\n                    return status",
        _CRASH + "test_a_program_outlives_its_agent",
    ),
    Defence(
        "a destination that takes nothing does not hold a parked program",
        "enclave_shim/migration/sending.py",
        "            nursery.start_soon(end_if_stalled, rounds, stall_s)\n",
        "            pass\n",
        "tests/attacks/test_stall.py::test_a_destination_that_reads_nothing",
    ),
    Defence(
        "a released program's process ends rather than run",
        "enclave_shim/runtime/park.c",
        "  if (CTL->released)\n",
        "  if (0)\n",
        _OWN + "test_a_released_process_never_runs_again",
    ),
    Defence(
        "a timer that is due, and whose interrupt has not come yet, counts as armed",
        "enclave_shim/runtime/timers.c",
        "  return b->value != 0;\n",
        "  return 0;\n",
        _PARKS + "test_a_timer_that_is_due_and_has_not_gone_off_yet_counts_as_armed",
    ),
    Defence(
        "an interval timer whose signal is pending goes on",
        "enclave_shim/runtime/timers.c",
        "      t[3] = t[1];\n",
        "      t[3] = 0;\n",
        _PARKS + "test_the_program_goes_on_as_if_nothing_had_been[timers-2]",
    ),
    Defence(
        "a program's clocks do not step back when a park is cancelled half-way",
        "enclave_shim/runtime/park.c",
        "  if (RT->stopped) {\n",
        "  if (RT->stopped < 2) {\n",
        _PARKS + "test_the_program_goes_on_as_if_nothing_had_been[descriptors-800]",
    ),
    Defence(
        "threads may decode the first message of a class at once",
        "protocol/wire.py",
        "    with _making_decoders:\n",
        "    if True:\n",
        "tests/protocol/test_wire.py::"
        "test_threads_that_decode_the_first_message_of_a_class_at_once",
    ),
    Defence(
        "no park is asked for while a thread is on its way out of the one before",
        "enclave_shim/process.py",
        "RtState.RUNNING, parked=0)",
        "RtState.RUNNING)",
        _PARKS + "test_a_park_that_is_asked_for_again_at_once_is_a_whole_one",
    ),
    Defence(
        "the first thread that parks for a quiesce tells all others",
        "enclave_shim/runtime/park.c",
        "wanted, __ATOMIC_SEQ_CST) == wanted)",
        "wanted, __ATOMIC_SEQ_CST) != 0)",
        _PARKS + "test_a_park_that_is_asked_for_again_at_once_is_a_whole_one",
    ),
    Defence(
        "a call that only a park cut short goes on",
        "enclave_shim/runtime/dispatch.c",
        "  return c->self->handled == w->handled;\n",
        "  return c->self->handled != w->handled;\n",
        _PARKS + "test_the_program_goes_on_as_if_nothing_had_been[descriptors-800]",
    ),
    Defence(
        "a call that a park and a handler with SA_RESTART cut short goes on",
        "enclave_shim/runtime/dispatch.c",
        "c->self->interrupted == w->interrupted",
        "c->self->handled == w->handled",
        _PARKS + "test_the_program_goes_on_as_if_nothing_had_been[interrupts-300]",
    ),
    Defence(
        "a call that a handler cut short ends, and says so",
        "enclave_shim/runtime/dispatch.c",
        "  return result == -E_INTR && rt_wait_undisturbed(c, w);\n",
        "  return result == -E_INTR && (rt_wait_undisturbed(c, w) || 1);\n",
        _PARKS + "test_the_program_goes_on_as_if_nothing_had_been[interrupts-300]",
    ),
    Defence(
        "what a disk reads straight into the program's memory counts as written when it is there",
        "enclave_shim/runtime/pinned.c",
        "    if (bytes)\n      rt_write_again(",
        "    if (!bytes)\n      rt_write_again(",
        "tests/tracking/test_uncached.py::test_a_copy_of_what_is_collected_is_the_memory",
    ),
    Defence(
        "a write into a file that was under way when the file was looked at counts once more",
        "enclave_shim/written_files.py",
        "before + self._under_way)",
        "self._under_way)",
        _WRITTEN + "test_a_write_that_is_under_way_counts_until_it_was_seen_to_be_over",
    ),
    Defence(
        "a file of which it is not known what was written is compared as a whole",
        "enclave_shim/files.py",
        "known.trusted, known.lost = False, True",
        "known.trusted, known.lost = False, False",
        _WRITTEN + "test_a_file_that_could_not_be_looked_at_is_compared",
    ),
    Defence(
        "what is written at a descriptor's position is marked when its end is known",
        "enclave_shim/runtime/written.c",
        "  if (watched && change.at_position) {\n",
        "  if (0) {\n",
        "tests/migration/test_written_files.py::test_files_that_change_in_every_way_arrive[kernel]",
    ),
    Defence(
        "half a table of mappings protects nothing",
        "enclave_shim/runtime/protections.c",
        "  if (bad)\n    return bad;\n",
        "  (void)bad;\n",
        "tests/runtime/test_protections.py::test_half_a_table_is_left_alone",
    ),
    Defence(
        "an older generation does not replace a newer one",
        "optmigd/daemon/admission.py",
        "    elif existing is not None and existing.row.generation > offer.generation:\n",
        "    elif False:\n",
        _STRANGERS + "test_an_older_generation_does_not_replace_a_newer_one",
    ),
    Defence(
        "an offer counts once",
        "optmigd/daemon/query.py",
        "    if known:\n",
        "    if False:\n",
        _STRANGERS + "test_an_offer_cannot_be_repeated",
    ),
    # The state on its way.
    Defence(
        "the source releases only when READY carries its own digest",
        "enclave_shim/migration/source.py",
        "        if not hmac.compare_digest(ready.digest, ours):\n",
        "        if False:\n",
        _OWN + "test_a_ready_with_another_digest_releases_nothing",
    ),
    Defence(
        "nothing follows the last round",
        "protocol/records.py",
        "            if self.ended:\n",
        "            if self.ended and self.round_no < 0:\n",
        _RECORDS + "test_nothing_follows_the_last_round",
    ),
    Defence(
        "what arrived is what the manifest says",
        "enclave_shim/migration/arrival.py",
        "        return found == (manifest.round_no,",
        "        return bool(found) or found == (manifest.round_no,",
        _OWN + "test_a_manifest_must_fit_what_arrived",
    ),
    Defence(
        "records are neither dropped, repeated nor reordered",
        "protocol/records.py",
        "            if (header.stream, header.round_no, header.sequence) != (\n",
        "            if False and (header.stream, header.round_no, header.sequence) != (\n",
        _RECORDS + "test_a_tampered_sequence_is_refused",
    ),
    Defence(
        "a round counts only with its whole content",
        "protocol/records.py",
        "            if end != self._end_of_round(last=end.last):\n",
        "            if False:\n",
        _RECORDS + "test_an_end_of_round_must_fit_what_arrived",
        quick=True,
    ),
    Defence(
        "page runs stay inside the arena",
        "protocol/record_format.py",
        "    if int(end[-1]) > arena_pages:\n",
        "    if False:\n",
        _RECORDS + "test_page_runs_are_accepted_exactly_when_they_are_in_order",
    ),
    Defence(
        "the content of a record fits its page runs",
        "protocol/records.py",
        "        if header.kind is Kind.PAGES and pages * self.page_bytes != header.body_bytes:\n",
        "        if False:\n",
        _RECORDS + "test_runs_must_fit_the_content",
    ),
    Defence(
        "the state's digest covers the generation",
        "protocol/record_stream.py",
        '    fixed = _STATE_LABEL + migration_id + generation.to_bytes(8, "little") + chain\n',
        "    fixed = _STATE_LABEL + migration_id + chain\n",
        _RECORDS + "test_digests_bind_every_part",
    ),
    Defence(
        "no cipher is chosen that was not proposed",
        "protocol/ciphers.py",
        "    if chosen not in proposed",
        "    if False and chosen not in proposed",
        "tests/protocol/test_ciphers.py::test_a_cipher_that_was_not_proposed_is_refused",
    ),
    Defence(
        "no key of an ended round is left",
        "protocol/record_stream.py",
        "            self._cipher.forget_key()\n",
        "            pass\n",
        _MEMORY + "test_the_key_of_an_ended_round_is_nowhere_in_memory",
    ),
    Defence(
        "no key of an ended round can be derived again",
        "protocol/ciphers.py",
        "        wipe(self._secret)\n",
        "        self._before = self._secret\n",
        _MEMORY + "test_the_key_of_an_ended_round_is_nowhere_in_memory",
    ),
    Defence(
        "a session's secrets live no longer than they are needed",
        "protocol/session.py",
        "            self._transport.forget()\n",
        "            pass\n",
        _MEMORY + "test_a_source_keeps_each_secret_for_as_long_as_it_is_needed",
    ),
    Defence(
        "a file name stays inside its directory (sender's name)",
        "protocol/record_format.py",
        """    if any(name in ("", ".", "..") or "\\0" in name for name in names):\n""",
        "    if False:\n",
        _RECORDS + "test_an_accepted_file_name_stays_inside",
    ),
    Defence(
        "a file name stays inside its directory (receiver's path)",
        "enclave_shim/beneath.py",
        """        or any(part in ("", ".", "..") for part in parts)\n""",
        "        or False\n",
        "tests/agent/test_files.py::test_paths_that_lead_out_are_refused",
    ),
    Defence(
        "a planted link is not followed",
        "enclave_shim/beneath.py",
        "DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC\n",
        "DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC\n",
        "tests/agent/test_files.py::test_a_planted_link_is_not_followed",
    ),
    # Who may receive it.
    Defence(
        "evidence belongs to this session",
        "enclave_shim/policy.py",
        "        if not hmac.compare_digest(claims.report_data, report_data):\n",
        "        if False:\n",
        _POLICY + "test_what_a_policy_forbids_is_refused_with_the_reason",
    ),
    Defence(
        "evidence belongs to this role",
        "protocol/session.py",
        'hashlib.sha512(_REPORT_LABEL + role.encode("ascii") + handshake_hash)',
        "hashlib.sha512(_REPORT_LABEL + handshake_hash)",
        _SESSION + "test_report_data_binds_role_and_handshake",
    ),
    Defence(
        "evidence belongs to this handshake",
        "protocol/session.py",
        'hashlib.sha512(_REPORT_LABEL + role.encode("ascii") + handshake_hash)',
        'hashlib.sha512(_REPORT_LABEL + role.encode("ascii"))',
        _SESSION + "test_report_data_binds_role_and_handshake",
    ),
    Defence(
        "evidence is appraised before anything is sent",
        "protocol/session.py",
        "        self._appraise(evidence, report_data(self._peer, "
        "self._handshake.hash_before_payload))\n",
        "",
        _SESSION + "test_another_measurement_ends_the_session",
        quick=True,
    ),
    Defence(
        "another program is no destination",
        "enclave_shim/policy.py",
        "        if claims.measurement not in accepted:\n",
        "        if False:\n",
        _POLICY + "test_what_a_policy_forbids_is_refused_with_the_reason",
        quick=True,
    ),
    Defence(
        "a debug enclave is no destination",
        "enclave_shim/policy.py",
        "        if claims.debug and not self.debug:\n",
        "        if False:\n",
        _POLICY + "test_what_a_policy_forbids_is_refused_with_the_reason",
    ),
    Defence(
        "a platform that the owner excludes is no destination",
        "enclave_shim/policy.py",
        "        if not self.accepts_platform(claims.platform, platform):\n",
        "        if False:\n",
        _POLICY + "test_what_a_policy_forbids_is_refused_with_the_reason",
    ),
    Defence(
        "an old security version is no destination",
        "enclave_shim/policy.py",
        "        if claims.security_version < self.min_security_version:\n",
        "        if False:\n",
        _POLICY + "test_what_a_policy_forbids_is_refused_with_the_reason",
    ),
    Defence(
        "shims that were told different stories do not meet",
        "protocol/session.py",
        '        return _PROLOGUE_LABEL + b"".join(self._parts())\n',
        "        return _PROLOGUE_LABEL\n",
        _SESSION + "test_shims_that_were_told_different_stories_do_not_meet",
    ),
    Defence(
        "a shim proposes what its daemon has offered",
        "enclave_shim/migration/proposal.py",
        "    if agreed != found:\n",
        "    if False:\n",
        _OWN + "test_a_proposal_must_be_what_was_offered",
    ),
    Defence(
        "the image that was measured is the one that runs",
        "enclave_shim/image.py",
        "            fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | "
        "F_SEAL_SEAL)\n",
        "            pass\n",
        "tests/agent/test_image.py::test_the_sealed_copy_cannot_be_changed",
    ),
    # Hosts.
    Defence(
        "a host that answers proves its pinned key",
        "optmigd/daemon/link.py",
        "                    if done.remote_static != peer.key:\n",
        "                    if False:\n",
        _STRANGERS + "test_answering_host_must_prove_its_pinned_key",
    ),
    Defence(
        "a host that dials is pinned",
        "optmigd/daemon/link.py",
        "    if unknown:\n",
        "    if False:\n",
        _STRANGERS + "test_unpinned_host_is_told_so_and_nothing_else",
    ),
    Defence(
        "a public key has 32 bytes",
        "protocol/noise.py",
        "    if len(private) != KEY_BYTES or len(public) != KEY_BYTES:\n",
        "    if False:\n",
        "tests/channel/test_noise.py::test_a_key_of_another_length_is_refused",
    ),
    Defence(
        "a ticket opens one stream",
        "optmigd/daemon/tickets.py",
        "        self._out.remove(found)\n",
        "",
        "tests/daemon/test_parts.py::test_a_ticket_is_worth_one_stream",
    ),
    Defence(
        "a peer learns of its own enclaves alone",
        "optmigd/daemon/query.py",
        "    if not _may_ask(host, enclave, asker):\n",
        "    if False:\n",
        _STRANGERS + "test_a_peer_learns_of_its_own_enclaves_alone",
    ),
    Defence(
        "a crowd of strangers does not keep peers out",
        "optmigd/daemon/listener.py",
        "        if total >= limits.max_half_open or self._half_open[address] >= per_address:\n",
        "        if False:\n",
        _STRANGERS + "test_a_crowd_of_one_address_does_not_keep_peers_out",
    ),
    Defence(
        "other users do not control the daemon",
        "optmigd/daemon/control.py",
        "            if uid not in (0, os.geteuid()):\n",
        "            if False:\n",
        "tests/daemon/test_control.py::test_other_users_are_refused",
    ),
    Defence(
        "other users do not reach a shim agent",
        "enclave_shim/connection.py",
        "    return uid in (0, os.geteuid())\n",
        "    return True\n",
        _OWN + "test_another_user_is_no_daemon",
    ),
    Defence(
        "the outcome of a migration is told to its own peer alone",
        "protocol/recovery.py",
        '    if row is None or row.role != "source" or row.peer_key != asker:\n',
        '    if row is None or row.role != "source":\n',
        "tests/protocol/test_recovery.py::test_a_stranger_learns_nothing_of_a_migration",
    ),
    Defence(
        "a confirmation is given to its own peer alone",
        "protocol/recovery.py",
        '    if row is None or row.role != "destination" or row.peer_key != asker:\n',
        '    if row is None or row.role != "destination":\n',
        "tests/protocol/test_recovery.py::test_a_stranger_learns_nothing_of_a_migration",
    ),
    # Bounds.
    Defence(
        "a frame has a bound before memory is taken",
        "protocol/wire.py",
        "    if announced > max_frame_bytes:\n",
        "    if False:\n",
        _WIRE + "test_an_oversize_frame_is_refused_when_its_length_is_known",
        quick=True,
    ),
    Defence(
        "a message is not nested without end",
        "protocol/wire.py",
        "            if len(open_counts) > MAX_DEPTH:\n",
        "            if False:\n",
        _WIRE + "test_hostile_msgpack_is_refused",
    ),
    Defence(
        "a string has a bound",
        "protocol/wire.py",
        "            if table is _STRING_LENGTH and length > MAX_STRING_BYTES:\n",
        "            if False:\n",
        _WIRE + "test_hostile_msgpack_is_refused",
    ),
    Defence(
        "a key counts once in a map",
        "protocol/wire.py",
        "    if len(result) != len(pairs):\n",
        "    if False:\n",
        _WIRE + "test_hostile_msgpack_is_refused",
    ),
    Defence(
        "fragments of a message have an end",
        "protocol/session.py",
        "        if len(self._partial) + len(chunk) > MAX_MESSAGE_BYTES:\n",
        "        if False:\n",
        _SESSION + "test_endless_fragments_are_refused",
    ),
    Defence(
        "unknown fields are refused",
        "protocol/link.py",
        'class _Message(Struct, frozen=True, forbid_unknown_fields=True, tag_field="t"):\n',
        'class _Message(Struct, frozen=True, tag_field="t"):\n',
        "tests/channel/test_link.py::test_every_message_arrives_and_tolerates_no_stranger",
    ),
)
