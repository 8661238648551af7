# Writes HEADER with the commit of SOURCE_DIR ("unknown" outside a git tree), if it would change.
set(commit "unknown")
if(GIT)
  execute_process(COMMAND ${GIT} -C ${SOURCE_DIR} describe --always --abbrev=12 --dirty --exclude=*
                  OUTPUT_VARIABLE described OUTPUT_STRIP_TRAILING_WHITESPACE
                  ERROR_QUIET RESULT_VARIABLE status)
  if(status EQUAL 0)
    set(commit "${described}")
  endif()
endif()
set(content "#pragma once\n#define CHASKI_COMMIT \"${commit}\"\n")
set(previous "")
if(EXISTS ${HEADER})
  file(READ ${HEADER} previous)
endif()
if(NOT content STREQUAL previous)
  file(WRITE ${HEADER} "${content}")
endif()
