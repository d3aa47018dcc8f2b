"""What only Redis itself can do in one step: its scripts."""

# Whether Redis' data are those that we know; see ``incarnation``. A record is 16 digits of time (µs), 16 random
# characters, the server's replication id (40), and a mark (16 digits). A user that may not ask for INFO cannot tell one
# server from another: then a connection that was made anew counts as another server.
# KEYS: record, hold, fingerprint. ARGV, few as a client without a password may not say more than ten words, with commas
# in between: the record that is known and the one that may be of another server; random characters; hold in ms,
# reconnected (0, 1), lifetime of a fingerprint in ms; fingerprints that may be there (ours first).
LOOK = """
local known, trusted = string.match(ARGV[1], '(.*),(.*)')
local hold_ms, reconnected, print_ms = string.match(ARGV[3], '(.*),(.*),(.*)')
local print, prints = redis.call('GET', KEYS[3]), {}
for each in string.gmatch(ARGV[4], '[^,]+') do
  prints[#prints + 1] = each
  prints[each] = true
end
if print and #prints > 0 and not prints[print] then return {'stranger', '', '', '', 0} end

local life_ms = 30 * 86400000
local unknown = string.rep('0', 40)
local server, role = unknown, ''
local info = redis.pcall('INFO', 'replication')
if type(info) == 'string' then
  server = string.match(info, 'master_replid:(%x+)') or unknown
  role = string.match(info, 'role:(%a+)') or ''
end
if #server ~= 40 then server = unknown end

local held, why = redis.call('GET', KEYS[1]) or '', ''
local is_first = held == '' and known == ''
local same = string.sub(held, 1, 32) == string.sub(known, 1, 32)
if held == '' then why = 'empty'
elseif #held ~= 88 or not tonumber(string.sub(held, 73)) then why = 'damaged'
elseif string.sub(held, 1, 32) < string.sub(known, 1, 32) then why = 'older'
elseif same and string.sub(held, 73) < string.sub(known, 73) then why = 'older'
elseif string.sub(held, 33, 72) ~= server then why = 'server'
elseif server == unknown and reconnected == '1' and same then why = 'server'
end

if why == 'server' and held == trusted then
  local moved = string.sub(held, 1, 32) .. server .. string.sub(held, 73)
  if not redis.pcall('SET', KEYS[1], moved, 'PX', life_ms)['err'] then held, why = moved, '' end
end
if why ~= '' then
  local time = redis.call('TIME')
  local now = time[1] * 1000000 + time[2]
  for _, record in ipairs({held, known}) do
    local made = #record == 88 and tonumber(string.sub(record, 1, 16))
    if made and made >= now and made < 9e15 then now = made + 1 end
  end
  held = string.format('%016.0f', now) .. ARGV[2] .. server .. string.rep('0', 16)
  if redis.pcall('SET', KEYS[1], held, 'PX', life_ms)['err'] then return {'read-only', '', why, role, 0} end
  -- Writes of before may be settling, unless nobody knows of any before.
  if not is_first then redis.call('SET', KEYS[2], '1', 'PX', hold_ms) end
end
if prints[1] and (not print or print == prints[1]) and redis.call('PTTL', KEYS[3]) < print_ms / 2 then
  redis.pcall('SET', KEYS[3], prints[1], 'PX', print_ms)
end
if redis.call('PTTL', KEYS[1]) < life_ms / 2 then redis.pcall('SET', KEYS[1], held, 'PX', life_ms) end
return {'sound', held, why, role, math.max(0, redis.call('PTTL', KEYS[2]))}
"""

# The mark in the record of Redis' data, so that a Redis that went back to before this shows.
_ADVANCE = """
local function advance(name)
  local record = redis.call('GET', name)
  if not record or #record ~= 88 or not tonumber(string.sub(record, 73)) then return record or '' end
  record = string.sub(record, 1, 72) .. string.format('%016.0f', tonumber(string.sub(record, 73)) + 1)
  redis.call('SET', name, record, 'PX', 30 * 86400000)
  return record
end
"""

# A write: what hangs on the tokens is stale. All or nothing: if the first SET is refused, none has happened.
# A hold is never made shorter: an earlier write may be of unknown outcome, and settles for longer than this one.
# KEYS: record, n tokens, n holds. ARGV: n, lifetime of a token in ms, hold in ms, the n new tokens.
# Answers: the tokens replaced, empty where there was none, and the record.
VOID = (
    _ADVANCE
    + """
local n, answers = tonumber(ARGV[1]), {}
for i = 1, n do
  answers[i] = redis.call('GET', KEYS[1 + i]) or ''
  redis.call('SET', KEYS[1 + i], ARGV[3 + i], 'PX', ARGV[2])
  if redis.call('PTTL', KEYS[1 + n + i]) < tonumber(ARGV[3]) then
    redis.call('SET', KEYS[1 + n + i], '1', 'PX', ARGV[3])
  end
end
answers[n + 1] = advance(KEYS[1])
return answers
"""
)

# Between reading the tokens and keeping an answer lies a call to the upstream; only Redis can tell whether a write came
# between, or whether its data went back. KEYS: entry, record, n tokens, n holds. ARGV: value, lifetime in ms, n, the n
# tokens as they were, the incarnation's.
FILL = """
local n = tonumber(ARGV[3])
if string.sub(redis.call('GET', KEYS[2]) or '', 17, 32) ~= ARGV[4 + n] then return 0 end
for i = 1, n do
  if redis.call('GET', KEYS[2 + i]) ~= ARGV[3 + i] then return 0 end
  if redis.call('EXISTS', KEYS[2 + n + i]) == 1 then return 0 end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

# KEYS: n claims, n entries. ARGV: owner, lease in ms, n, n times whether to look for the entry.
# Answers: 1 claimed, 0 held by another, 2 the entry is there, 3 nobody need claim it.
CLAIM = """
local n, answers = tonumber(ARGV[3]), {}
for i = 1, n do
  if ARGV[3 + i] == '1' and redis.call('EXISTS', KEYS[n + i]) == 1 then
    answers[i] = 2
  elseif redis.call('SET', KEYS[i], ARGV[1], 'NX', 'PX', ARGV[2]) then
    answers[i] = 1
  else
    local holder = redis.call('GET', KEYS[i])
    answers[i] = holder == ARGV[1] and 1 or holder == '' and 3 or 0
  end
end
return answers
"""

# KEYS: claims. ARGV: owner, and for those that are the owner's a new lease in ms.
RENEW = """
for i = 1, #KEYS do
  if redis.call('GET', KEYS[i]) == ARGV[1] then redis.call('SET', KEYS[i], ARGV[1], 'XX', 'PX', ARGV[2]) end
end
return 1
"""

# KEYS: claims. ARGV: owner, and for how many ms nobody need claim them: an empty value says so.
RELEASE = """
for i = 1, #KEYS do
  if redis.call('GET', KEYS[i]) == ARGV[1] then
    if ARGV[2] == '0' then redis.call('UNLINK', KEYS[i]) else redis.call('SET', KEYS[i], '', 'PX', ARGV[2]) end
  end
end
return 1
"""

# Refused. KEYS: standing, record. ARGV: mark, lifetime in ms, whether it counts without a standing (0, 1).
REFUSE = (
    _ADVANCE
    + """
if ARGV[3] == '0' and redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
advance(KEYS[2])
return 1
"""
)

# Accepted again: only who knows the mark may take it away. What has not a mark's length says accepted, perhaps of an
# earlier incarnation. KEYS: standing. ARGV: accepted, lifetime in ms, mark, length of a mark.
ACCEPT = """
local held = redis.call('GET', KEYS[1])
if not held or held == ARGV[3] or #held ~= tonumber(ARGV[4]) then held = ARGV[1] end
redis.call('SET', KEYS[1], held, 'PX', ARGV[2])
return 1
"""
