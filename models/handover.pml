/* The hand-over of pages between a writer and a reader in two processes (aiotrace/_handover.py, _csrc/ring/page_state.c).
 *
 * One writer, one reader, drop_oldest, PAGES pages, of which the writer fills ROUNDS; it may be killed between any two
 * of its steps. Each word that both can see is read and written in a step of its own; a compare-and-swap is one step.
 * What is not modelled: the order in which a processor lets the other see plain stores. It is not needed: a seal and
 * a give-back release, the swaps that take what they gave acquire (C11), and the second look is behind a fence.
 *
 *     spin -run -m200000 handover.pml            no error may be found
 *     spin -run -DMUTANT_SWAP handover.pml       and so with each mutant: an error must be
 *
 * MUTANT_SWAP    the reader's take is a load and a store, not one step
 * MUTANT_SEAL    the page is sealed before its second half is written
 * MUTANT_LOOK    the reader looks once, not twice: an older page may be sealed behind its back
 * MUTANT_CHECK   the reader does not look again at what it took
 * MUTANT_HOME    the page goes home before the reader has read its second half
 * MUTANT_DEATH   what a dead writer was filling is taken without asking whether anything is committed on it
 * MUTANT_PEEK    the reader does not look again at the number of a page that it copied while it was filled
 */
#ifndef PAGES
#define PAGES 3
#endif
#ifndef ROUNDS
#define ROUNDS 5
#endif
#define NONE 255

mtype = { FREE, FILLING, FULL, TAKEN };

mtype state[PAGES] = FREE;
byte number[PAGES] = NONE;    /* of the page in its writer's stream: WRITER, SEQUENCE and CHECK in one */
bool committed[PAGES] = false;
byte half[PAGES * 2] = NONE;  /* what is on the page: its number, in two halves */

bool dead = false;            /* the writer has ended, or was killed */
byte fate[ROUNDS] = 0;        /* of each page that was committed: 1 sealed, 2 overrun, 3 delivered */

#define may_die   if :: true :: goto killed fi

proctype writer()
{
    byte i, p, oldest, next = 0;
    bool swapped;

    do
    :: next == ROUNDS -> break
    :: else ->
        may_die;
        /* HandedPool.take: a free page. Nobody else takes those, so the swap cannot fail. */
        p = NONE;
        i = 0;
        do
        :: i < PAGES && p == NONE && state[i] == FREE -> p = i; i++
        :: i < PAGES && !(p == NONE && state[i] == FREE) -> i++
        :: i == PAGES -> break
        od;
        if
        :: p != NONE ->
            committed[p] = false;
            d_step { assert(state[p] == FREE); state[p] = FILLING }
        :: else ->
            /* HandedRing.overrun: the oldest that was sealed, until a swap succeeds. */
            do
            :: d_step {
                    oldest = NONE; i = 0;
                    do
                    :: i < next && fate[i] == 1 && oldest == NONE -> oldest = i; i++
                    :: i < next && !(fate[i] == 1 && oldest == NONE) -> i++
                    :: i == next -> break
                    od;
                    /* where it lies: the writer's own queue knows */
                    p = 0;
                    do
                    :: oldest != NONE && p < PAGES && number[p] != oldest -> p++
                    :: else -> break
                    od
               };
               if
               :: oldest == NONE || p == PAGES -> p = NONE; break
               :: else ->
                    may_die;
                    d_step {
                        swapped = (state[p] == FULL && number[p] == oldest);
                        if :: swapped -> state[p] = FILLING; fate[oldest] = 2 :: else fi
                    };
                    if :: swapped -> break :: else fi
               fi
            od;
            if
            :: p == NONE -> goto again  /* the event is dropped; the next one tries again */
            :: else -> may_die; committed[p] = false
            fi
        fi;
        may_die;
        number[p] = next;
        may_die;
#ifdef MUTANT_SEAL
        half[2 * p] = next;
        committed[p] = true;
        d_step { state[p] = FULL; fate[next] = 1 };
        half[2 * p + 1] = next;
#else
        half[2 * p] = next;
        half[2 * p + 1] = next;
        d_step { committed[p] = true; fate[next] = 1 };  /* from here on it may not be lost, whoever is killed */
        may_die;
        d_step { assert(state[p] == FILLING); state[p] = FULL };
#endif
        next++
again:
        skip
    od;
killed:
    dead = true
}

byte last = NONE;             /* of the pages that were delivered */
byte found[PAGES] = NONE;     /* the plan: what the second look, or an earlier take, says is there */
bool early[PAGES] = false;

inline deliver(q)
{
    byte now = number[q];
    assert(state[q] == TAKEN);
    assert(last == NONE || now > last);          /* each writer's pages in order */
    assert(half[2 * q] == now);                  /* nothing torn, nothing of another page */
#ifdef MUTANT_HOME
    state[q] = FREE;
    assert(half[2 * q + 1] == now);
#else
    assert(half[2 * q + 1] == now);
    state[q] = FREE;
#endif
    d_step { assert(fate[now] == 1); fate[now] = 3; last = now }
}

/* TakenRing.mark: a copy of what is committed on a page that still fills; no state changes. */
inline peek(q)
{
    seen = number[q];
    if
    :: state[q] == FILLING && seen != NONE ->
        if
        :: committed[q] ->
            copy[0] = half[2 * q];
            copy[1] = half[2 * q + 1];
#ifdef MUTANT_PEEK
            assert(copy[0] == seen && copy[1] == seen);
#else
            if
            :: number[q] == seen -> assert(copy[0] == seen && copy[1] == seen)
            :: else
            fi;
#endif
            copy[0] = 0; copy[1] = 0
        :: else
        fi
    :: else
    fi
}

proctype reader()
{
    byte copy[2];
    byte i, came, seen, best;
    bool was_dead, swapped, any;
    mtype was;

    do
    ::  was_dead = dead;
        if
        :: was_dead ->
            /* TakenRing.finish: what the dead writer was filling */
            i = 0;
            do
            :: i < PAGES ->
                if
                :: state[i] == FILLING ->
                    if
#ifdef MUTANT_DEATH
                    :: true -> state[i] = FULL
#else
                    :: committed[i] && (last == NONE || number[i] > last) ->
                        d_step { state[i] = FULL; fate[number[i]] = 1 }  /* also what was overrun just then */
                    :: else -> state[i] = FREE   /* nothing on it, or it comes too late */
#endif
                    fi
                :: else
                fi;
                i++
            :: else -> break
            od
        :: else
        fi;
        if
        :: select (i : 0 .. (PAGES - 1)); peek(i)
        :: true
        fi;
        any = false;
        /* the first look: how far the writer has come */
        came = NONE;
        i = 0;
        do
        :: i < PAGES ->
            if
            :: early[i] -> was = TAKEN; seen = number[i]
            :: else -> was = state[i]; seen = number[i]
            fi;
            if
            :: (early[i] || was == FULL) && seen != NONE && (came == NONE || seen > came) -> came = seen
            :: else
            fi;
            i++
        :: else -> break
        od;
        /* the second look: the plan */
        i = 0;
        do
        :: i < PAGES ->
            found[i] = NONE;
#ifdef MUTANT_LOOK
            came = ROUNDS;
#endif
            if
            :: early[i] -> found[i] = number[i]
            :: else ->
                was = state[i];
                seen = number[i];
                if
                :: was == FULL && came != NONE && seen != NONE && seen <= came -> found[i] = seen
                :: else
                fi
            fi;
            i++
        :: else -> break
        od;
        /* take, the oldest first */
        do
        ::  d_step {
                best = NONE; i = 0;
                do
                :: i < PAGES && found[i] != NONE && (best == NONE || found[i] < found[best]) -> best = i; i++
                :: i < PAGES && !(found[i] != NONE && (best == NONE || found[i] < found[best])) -> i++
                :: i == PAGES -> break
                od
            };
            if
            :: best == NONE -> break
            :: else ->
                any = true;
                if
                :: early[best] -> early[best] = false; found[best] = NONE; deliver(best)
                :: else ->
#ifdef MUTANT_SWAP
                    swapped = (state[best] == FULL);
                    if :: swapped -> state[best] = TAKEN :: else fi;
#else
                    d_step {
                        swapped = (state[best] == FULL);
                        if :: swapped -> state[best] = TAKEN :: else fi
                    };
#endif
                    seen = found[best];
                    found[best] = NONE;
                    if
                    :: !swapped
#ifndef MUTANT_CHECK
                    :: swapped && number[best] != seen -> early[best] = true  /* overrun and sealed again */
                    :: swapped && number[best] == seen -> deliver(best)
#else
                    :: swapped -> deliver(best)
#endif
                    fi
                fi
            fi
        od;
        if :: was_dead && !any -> break :: else fi
    od;
    /* every page is home, and every page that was committed was delivered or overrun */
    i = 0;
    do
    :: i < PAGES -> assert(state[i] == FREE); i++
    :: else -> break
    od;
    i = 0;
    do
    :: i < ROUNDS -> assert(fate[i] != 1); i++
    :: else -> break
    od
}

init { atomic { run writer(); run reader() } }
